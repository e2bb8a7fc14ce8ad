"""Networks of Neural Tangents 0.6.5, some of each kind, as ordinary JAX functions."""

import reference_attention as reference_attention
import reference_dense as reference_dense
import reference_spatial as reference_spatial
from reference_layers import NETWORKS as NETWORKS
from reference_layers import Network as Network
