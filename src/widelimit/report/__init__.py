"""What the compiler did, for people: the kernel recursion, and the theorem it uses."""

from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._formula import Formula as Formula
from ._formula import formula as formula
from ._independence import Correction as Correction
from ._independence import Product as Product
from ._independence import corrections as corrections
