"""The networks of Neural Tangents 0.6.5, written as ordinary JAX functions.

Left out of the peer's list: its quadratures (`num_*`), a kernel that no layer has
(`phi1_expnorm`) and attention with 1/sqrt(n) logits (`attn_sqrt_*`).
"""

import reference_attention as reference_attention
import reference_dense as reference_dense
import reference_spatial as reference_spatial
from reference_layers import NETWORKS as NETWORKS
from reference_layers import Network as Network
