"""From a tensor program to its limit, by Theorem 4 of Yang (2019)."""

from ._draws import FORMULAS as FORMULAS
from ._draws import PAIRS as PAIRS
from ._draws import NeedsDraws as NeedsDraws
from ._draws import Sampling as Sampling
from ._draws import semidefinite_root as semidefinite_root
from ._engine import Engine as Engine
from ._engine import Side as Side
from ._engine import Step as Step
from ._estimated import REPEATS as REPEATS
from ._estimated import Inputs as Inputs
from ._estimated import Question as Question
from ._estimated import relative_error as relative_error
from ._limit import ProgramLimit as ProgramLimit
from ._limit import limit as limit
from ._loops import Loop as Loop
from ._loops import find_loops as find_loops
from ._poles import has_pole_at_zero as has_pole_at_zero
from ._product import Factor as Factor
from ._product import Product as Product
from ._route import Route as Route
