"""Layers and networks of them, with the API that users of Neural Tangents know.

A layer is a triple (init_fn, apply_fn, kernel_fn). There is no mathematics of kernels
here: a layer is what it does to arrays, and `kernel_fn` is the compiler's.

Example:
    ```python
    from widelimit import stax

    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(512), stax.Relu(), stax.Dense(10)
    )
    kernel_fn(x1, x2, ("nngp", "ntk"))
    ```
"""

from ._attention import AttentionMechanism as AttentionMechanism
from ._attention import GlobalSelfAttention as GlobalSelfAttention
from ._attention import PositionalEmbedding as PositionalEmbedding
from ._branching import FanInConcat as FanInConcat
from ._branching import FanInProd as FanInProd
from ._branching import FanInSum as FanInSum
from ._branching import FanOut as FanOut
from ._combinators import parallel as parallel
from ._combinators import repeat as repeat
from ._combinators import serial as serial
from ._combinators import shared as shared
from ._convolutions import Conv as Conv
from ._convolutions import ConvLocal as ConvLocal
from ._convolutions import ConvTranspose as ConvTranspose
from ._custom import Bool as Bool
from ._custom import Diagonal as Diagonal
from ._custom import requires as requires
from ._custom import supports_masking as supports_masking
from ._dense import Dense as Dense
from ._dense import DotGeneral as DotGeneral
from ._dense import Embedding as Embedding
from ._dense import Flatten as Flatten
from ._dense import Identity as Identity
from ._dense import Index as Index
from ._dense import Slice as Slice
from ._elementwise import ABRelu as ABRelu
from ._elementwise import Abs as Abs
from ._elementwise import Cos as Cos
from ._elementwise import Elementwise as Elementwise
from ._elementwise import ElementwiseNumerical as ElementwiseNumerical
from ._elementwise import Elu as Elu
from ._elementwise import Erf as Erf
from ._elementwise import Exp as Exp
from ._elementwise import ExpNormalized as ExpNormalized
from ._elementwise import Gabor as Gabor
from ._elementwise import Gaussian as Gaussian
from ._elementwise import Gelu as Gelu
from ._elementwise import Hermite as Hermite
from ._elementwise import LeakyRelu as LeakyRelu
from ._elementwise import Monomial as Monomial
from ._elementwise import Polynomial as Polynomial
from ._elementwise import Rbf as Rbf
from ._elementwise import RectifiedMonomial as RectifiedMonomial
from ._elementwise import Relu as Relu
from ._elementwise import Selu as Selu
from ._elementwise import Sigmoid as Sigmoid
from ._elementwise import Sigmoid_like as Sigmoid_like
from ._elementwise import Sign as Sign
from ._elementwise import Silu as Silu
from ._elementwise import Sin as Sin
from ._elementwise import Softplus as Softplus
from ._elementwise import Tanh as Tanh
from ._graph import Aggregate as Aggregate
from ._graph import AggregateImplementation as AggregateImplementation
from ._graph import ImageResize as ImageResize
from ._layer import Layer as Layer
from ._layer import layer as layer
from ._masks import MaskedArray as MaskedArray
from ._masks import unmask_fn as unmask_fn
from ._normalisation import BatchNorm as BatchNorm
from ._normalisation import Dropout as Dropout
from ._normalisation import LayerNorm as LayerNorm
from ._padding import Padding as Padding
from ._pooling import AvgPool as AvgPool
from ._pooling import GlobalAvgPool as GlobalAvgPool
from ._pooling import GlobalSumPool as GlobalSumPool
from ._pooling import MaxPool as MaxPool
from ._pooling import SumPool as SumPool
from ._recurrent import GRU as GRU
from ._recurrent import LSTM as LSTM
from ._recurrent import RNN as RNN
from ._recurrent import Softmax as Softmax
