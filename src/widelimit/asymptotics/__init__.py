"""From a tensor program to its limit, by Theorem 4 of Yang (2019)."""

from ._engine import Engine as Engine
from ._engine import Side as Side
from ._engine import Step as Step
from ._limit import ProgramLimit as ProgramLimit
from ._limit import limit as limit
from ._product import Factor as Factor
from ._product import Product as Product
