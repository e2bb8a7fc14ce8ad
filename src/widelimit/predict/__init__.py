"""From kernel matrices to predictions; arrays in, arrays out, no programs."""

from ._descent import TrainedEnsemble as TrainedEnsemble
from ._descent import trained_ensemble as trained_ensemble
from ._dynamics import positive_rate as positive_rate
from ._ensemble_mse import (
    gradient_descent_mse_ensemble as gradient_descent_mse_ensemble,
)
from ._factorised import FactorisedKernel as FactorisedKernel
from ._gaussian import Gaussian as Gaussian
from ._gp_inference import gp_inference as gp_inference
from ._gradient_descent import gradient_descent as gradient_descent
from ._gradient_descent_mse import gradient_descent_mse as gradient_descent_mse
from ._learning_rate import max_learning_rate as max_learning_rate
from ._linearised import Linearised as Linearised
from ._linearised import linearised as linearised
from ._ode_state import ODEState as ODEState
from ._posterior import Posterior as Posterior
from ._posterior import gp_posterior as gp_posterior
