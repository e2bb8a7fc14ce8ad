"""The network at finite width: drawing it, and comparing it with its limit."""

from ._check import check as check
from ._empirical import empirical_kernel_fn as empirical_kernel_fn
from ._empirical import empirical_nngp_fn as empirical_nngp_fn
from ._empirical import empirical_ntk_fn as empirical_ntk_fn
from ._empirical import empirical_ntk_vp_fn as empirical_ntk_vp_fn
from ._gradients import GRADIENT as GRADIENT
from ._implementation import NtkImplementation as NtkImplementation
from ._network import FiniteNetwork as FiniteNetwork
from ._network import at as at
from ._report import Check as Check
from ._report import Row as Row
from ._taylor import linearize as linearize
from ._taylor import taylor_expand as taylor_expand
from ._train import Training as Training
from ._train import mse as mse
