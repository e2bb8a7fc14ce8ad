"""From kernel matrices to predictions; arrays in, arrays out, no programs."""

from ._posterior import Posterior as Posterior
from ._posterior import gp_posterior as gp_posterior
