"""widelimit: any neural network as a tensor program, and its infinite-width limit.

Write a network as an ordinary JAX function, declare its parameters, and `limit`
compiles it: `net.nngp(x1, x2)` is the kernel of the Gaussian process that it becomes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from ._api import Limit as Limit
    from ._api import limit as limit
    from ._batch import batch as batch
    from ._cache import compilation_cache as compilation_cache
    from ._errors import InputError as InputError
    from ._errors import InvalidProgramError as InvalidProgramError
    from ._errors import NoLimitError as NoLimitError
    from ._errors import ParseError as ParseError
    from ._errors import ShapeMismatchError as ShapeMismatchError
    from ._errors import UnsupportedError as UnsupportedError
    from ._errors import WidelimitError as WidelimitError
    from ._kernel import Kernel as Kernel
    from ._monte_carlo import monte_carlo_kernel_fn as monte_carlo_kernel_fn
    from ._programs import LimitOfProgram as LimitOfProgram
    from ._programs import Program as Program
    from ._programs import ProgramGradients as ProgramGradients
    from ._programs import backprop as backprop
    from ._programs import parse as parse
    from .finite import Check as Check
    from .finite import FiniteNetwork as FiniteNetwork
    from .finite import NtkImplementation as NtkImplementation
    from .finite import Training as Training
    from .finite import empirical_kernel_fn as empirical_kernel_fn
    from .finite import empirical_nngp_fn as empirical_nngp_fn
    from .finite import empirical_ntk_fn as empirical_ntk_fn
    from .finite import empirical_ntk_vp_fn as empirical_ntk_vp_fn
    from .finite import linearize as linearize
    from .finite import taylor_expand as taylor_expand
    from .gaussian import Estimate as Estimate
    from .gaussian import estimate as estimate
    from .phase import PhaseDiagram as PhaseDiagram
    from .phase import phase_diagram as phase_diagram
    from .predict import Posterior as Posterior
    from .predict import TrainedEnsemble as TrainedEnsemble
    from .predict import gp_posterior as gp_posterior
    from .predict import max_learning_rate as max_learning_rate
    from .predict import trained_ensemble as trained_ensemble
    from .program import TensorProgram as TensorProgram
    from .trace import constant as constant
    from .trace import normal as normal
    from .trace import tap as tap
    from .trace import untie as untie
    from .trace import width as width

# Loaded when first used: `widelimit --help` should not wait for JAX.
_HOME = {
    "_api": "Limit limit",
    "_batch": "batch",
    "_cache": "compilation_cache",
    "_programs": "LimitOfProgram Program ProgramGradients backprop parse",
    "_errors": "InputError InvalidProgramError NoLimitError ParseError "
    "ShapeMismatchError UnsupportedError WidelimitError",
    "_kernel": "Kernel",
    "_monte_carlo": "monte_carlo_kernel_fn",
    "finite": "Check FiniteNetwork NtkImplementation Training empirical_kernel_fn "
    "empirical_nngp_fn empirical_ntk_fn empirical_ntk_vp_fn linearize taylor_expand",
    "gaussian": "Estimate estimate",
    "phase": "PhaseDiagram phase_diagram",
    "predict": "Posterior TrainedEnsemble gp_posterior max_learning_rate "
    "trained_ensemble",
    "program": "TensorProgram",
    "trace": "constant normal tap untie width",
}
_WHERE = {name: home for home, names in _HOME.items() for name in names.split()}
_PACKAGES = ("gaussian", "predict", "program", "stax", "trace")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_WHERE, *_PACKAGES, "__version__"])
