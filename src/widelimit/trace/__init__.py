"""From an ordinary JAX function to a tensor program."""

from ._compile import Network as Network
from ._compile import Traced as Traced
from ._compile import compile_network as compile_network
from ._compile import path_name as path_name
from ._compile import trace_at as trace_at
from ._compile import traced_graph as traced_graph
from ._compile import user_line as user_line
from ._declare import Constant as Constant
from ._declare import Normal as Normal
from ._declare import Width as Width
from ._declare import WidthForm as WidthForm
from ._declare import constant as constant
from ._declare import normal as normal
from ._declare import tap as tap
from ._declare import trial_shape as trial_shape
from ._declare import width as width
from ._declare import widths_are as widths_are
from ._declare import widths_in as widths_in
from ._given import given as given
from ._tracer import RULES as RULES
from ._tracer import Check as Check
from ._trained import received as received
from ._trained import sample as sample
from ._trained import tangent_variance as tangent_variance
from ._trained import trained_factor as trained_factor
