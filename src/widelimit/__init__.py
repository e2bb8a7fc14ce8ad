"""widelimit: any neural network as a tensor program, and its infinite-width limit.

Write a network as an ordinary JAX function, declare its parameters, and `limit` compiles
it: `net.nngp(x1, x2)` is the kernel of the Gaussian process that it becomes.
"""

from . import gaussian as gaussian
from . import predict as predict
from ._api import Limit as Limit
from ._api import LimitOfProgram as LimitOfProgram
from ._api import Program as Program
from ._api import limit as limit
from ._api import parse as parse
from ._errors import InputError as InputError
from ._errors import InvalidProgramError as InvalidProgramError
from ._errors import NoLimitError as NoLimitError
from ._errors import ParseError as ParseError
from ._errors import ShapeMismatchError as ShapeMismatchError
from ._errors import UnsupportedError as UnsupportedError
from ._errors import WidelimitError as WidelimitError
from .finite import Check as Check
from .gaussian import Estimate as Estimate
from .predict import Posterior as Posterior
from .predict import gp_posterior as gp_posterior
from .program import TensorProgram as TensorProgram
from .trace import constant as constant
from .trace import normal as normal
from .trace import tap as tap
from .trace import width as width

__version__ = "0.1.0"
