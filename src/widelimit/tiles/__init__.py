"""A matrix of pairs in tiles: how it is cut, and put together again."""

from ._cut import Cut as Cut
from ._cut import cut_inputs as cut_inputs
from ._cut import cut_kernels as cut_kernels
from ._cut import is_kernel as is_kernel
from ._cut import uncut as uncut
from ._memory import check_memory as check_memory
from ._mirror import Mirror as Mirror
from ._mirror import layouts as layouts
from ._parts import Parts as Parts
from ._whole import Whole as Whole
