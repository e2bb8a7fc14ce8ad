"""What the compiler did, for people: the kernel recursion, and the theorem it uses."""

from ._backward import BackwardPass as BackwardPass
from ._backward import backward_pass as backward_pass
from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._formula import Formula as Formula
from ._formula import formula as formula
from ._growth import Growth as Growth
from ._hypotheses import GradientReport as GradientReport
from ._hypotheses import Hypothesis as Hypothesis
from ._hypotheses import gradient_report as gradient_report
from ._independence import Correction as Correction
from ._independence import DotTerm as DotTerm
from ._kernel_plan import KernelPlan as KernelPlan
from ._kernel_plan import kernel_plan as kernel_plan
