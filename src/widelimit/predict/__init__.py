"""From kernel matrices to predictions; arrays in, arrays out, no programs."""

from ._descent import TrainedEnsemble as TrainedEnsemble
from ._descent import trained_ensemble as trained_ensemble
from ._dynamics import positive_rate as positive_rate
from ._learning_rate import max_learning_rate as max_learning_rate
from ._linearised import Linearised as Linearised
from ._linearised import linearised as linearised
from ._posterior import Posterior as Posterior
from ._posterior import gp_posterior as gp_posterior
