"""Signal propagation through a layer that is repeated: the edge of chaos."""

from ._diagram import PhaseDiagram as PhaseDiagram
from ._scan import phase_diagram as phase_diagram
