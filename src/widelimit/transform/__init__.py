"""Program to program: one pass a file, and the pipeline that runs them.

Every pass of the pipeline keeps the values of the lines that are kept, at every finite
width. `detranspose` stands beside it: it keeps limits.
"""

from ._adjoints import wide as wide
from ._at_ratios import at_ratios as at_ratios
from ._backprop import Backprop as Backprop
from ._backprop import Gradients as Gradients
from ._backprop import MatrixUse as MatrixUse
from ._backprop import adjoint_of as adjoint_of
from ._backprop import backprop as backprop
from ._detranspose import Detransposed as Detransposed
from ._detranspose import detranspose as detranspose
from ._directional import directional as directional
from ._drop_dead import drop_dead as drop_dead
from ._in_order import in_order as in_order
from ._linearise import Linearised as Linearised
from ._linearise import linearise as linearise
from ._merge_equal import merge_equal as merge_equal
from ._parity import Parities as Parities
from ._parity import Parity as Parity
from ._pipeline import STAGES as STAGES
from ._pipeline import Rewritten as Rewritten
from ._pipeline import normal_form as normal_form
from ._promote import promote as promote
from ._take_apart import take_apart as take_apart
