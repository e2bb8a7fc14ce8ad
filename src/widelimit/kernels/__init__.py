"""Kernel matrices of compiled networks, by blocks."""

from ._blocks import BlockKernel as BlockKernel
from ._pairs import PairKernel as PairKernel
