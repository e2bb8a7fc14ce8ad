"""Kernel matrices of compiled networks, by blocks."""

from ._blocks import BlockKernel as BlockKernel
from ._forwards import forwards as forwards
from ._pairs import Inputs as Inputs
from ._pairs import PairKernel as PairKernel
from ._pairs import averaged as averaged
from ._pairs import mean_of as mean_of
from ._pairs import swapped as swapped
from ._plan import Memory as Memory
from ._plan import Plan as Plan
from ._quantities import Gradient as Gradient
from ._quantities import Quantities as Quantities
