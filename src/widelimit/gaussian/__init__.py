"""Expectations of functions of jointly Gaussian variables.

`expect` is what the compiler calls: traced, batched, differentiable. `estimate` is
the same for concrete numbers, with an error bar on every one.
"""

from ._closed import has_kink as has_kink
from ._closed import knows_distance as knows_distance
from ._closed import scaled_distance as scaled_distance
from ._estimate import Accuracy as Accuracy
from ._estimate import Estimate as Estimate
from ._existence import check_exists as check_exists
from ._existence import rough_mean as rough_mean
from ._expect import expect as expect
from ._expect import half_distance as half_distance
from ._expect import is_exact as is_exact
from ._expect import route as route
from ._given import define_dual as define_dual
from ._given import quadrature_dual as quadrature_dual
from ._growth import Signs as Signs
from ._growth import growth as growth
from ._growth import is_positive as is_positive
from ._growth import is_singular as is_singular
from ._host import estimate as estimate
from ._jumps import may_jump as may_jump
from ._qmc import sobol_normal as sobol_normal
from ._quadrature import safe_divide as safe_divide
from ._quadrature import safe_sqrt as safe_sqrt
