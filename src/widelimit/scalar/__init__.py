"""Scalar functions as data: what a coordinatewise nonlinearity *is*.

An `Expr` is a small expression tree over numbered arguments. It can be evaluated on
arrays of any shape, compared, printed as Python and read back.
"""

from ._derivative import differentiate as differentiate
from ._derivative import log_add_exp_arguments as log_add_exp_arguments
from ._expr import OPS as OPS
from ._expr import Arg as Arg
from ._expr import Call as Call
from ._expr import Const as Const
from ._expr import Expr as Expr
from ._expr import arity as arity
from ._expr import call as call
from ._expr import evaluate as evaluate
from ._expr import evaluate_now as evaluate_now
from ._expr import substitute as substitute
from ._given import define as define
from ._linear import linear_factor as linear_factor
from ._sign import is_nonnegative as is_nonnegative
from ._text import parse as parse
from ._text import to_text as to_text
from ._trace import CALLS as CALLS
from ._trace import PRIMITIVES as PRIMITIVES
from ._trace import apply_primitive as apply_primitive
from ._trace import from_callable as from_callable
