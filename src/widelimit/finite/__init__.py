"""The network at finite width: drawing it, and comparing it with its limit."""

from ._check import check as check
from ._gradients import GRADIENT as GRADIENT
from ._network import FiniteNetwork as FiniteNetwork
from ._network import at as at
from ._report import Check as Check
from ._report import Row as Row
from ._train import Training as Training
from ._train import mse as mse
