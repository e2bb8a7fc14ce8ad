"""Functions of one entry at a time."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from .._errors import InputError, UnsupportedError
from .._jax import is_concrete
from ..gaussian import define_dual, quadrature_dual
from ..trace import given
from ._layer import Layer, Leaf, layer, layer_of
from ._signal import Signal, Widths
from ._weights import Hyperparameter


def _elementwise(fn: Callable[..., Any], *numbers: Any) -> Layer:
    """The layer of `fn(x, *numbers)`."""
    # Traced numbers go where kernels can be differentiated by them.
    moving = not all(map(is_concrete, numbers))

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        after = signal.after(is_gaussian=False)
        if moving and widths.is_infinite:
            return after, [Hyperparameter(number) for number in numbers]
        return after, ()

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        return fn(x, *(weights or numbers))

    return layer_of(Leaf(run, declared))


@layer
def Erf(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Layer:
    """A erf(b x) + c."""
    return _elementwise(lambda x, a, b, c: a * erf(b * x) + c, a, b, c)


@layer
def Sigmoid_like() -> Layer:
    """(1 + erf(x / 2.402)) / 2, close to the logistic function; see `Sigmoid`."""
    # Of all scales the one with the smallest mean squared difference on [-5, 5].
    return Erf(a=0.5, b=1 / 2.4020563531719796, c=0.5)


@layer
def Gabor() -> Layer:
    """exp(-x^2) sin(x)."""
    return _elementwise(lambda x: jnp.exp(-(x**2)) * jnp.sin(x))


@layer
def Gelu(approximate: bool = False) -> Layer:
    """`jax.nn.gelu`.

    Args:
        approximate: whether by tanh; the limit is then that of this function too.

    References:
        Hendrycks and Gimpel (2016), https://arxiv.org/abs/1606.08415.
    """
    return _elementwise(functools.partial(jax.nn.gelu, approximate=approximate))


@layer
def Sin(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Layer:
    """A sin(b x + c)."""
    return _elementwise(lambda x, a, b, c: a * jnp.sin(b * x + c), a, b, c)


@layer
def Cos(a: Any = 1.0, b: Any = 1.0, c: Any = 0.0) -> Layer:
    """A cos(b x + c)."""
    return _elementwise(lambda x, a, b, c: a * jnp.cos(b * x + c), a, b, c)


@layer
def Rbf(gamma: Any = 1.0) -> Layer:
    """sqrt(2) sin(sqrt(2 gamma) x + pi/4).

    For inputs x of d entries a `Dense` layer before it makes the kernel
    exp(-gamma |x - x'|^2 / d).

    Args:
        gamma: 1 / (2 l^2) for the length l.
    """

    def fn(x: Any, gamma: Any) -> Any:
        return math.sqrt(2) * jnp.sin(jnp.sqrt(2 * gamma) * x + math.pi / 4)

    return _elementwise(fn, gamma)


@layer
def ABRelu(a: Any, b: Any, do_stabilize: bool = False) -> Layer:
    """A min(x, 0) + b max(x, 0).

    Args:
        a: the slope below 0.
        b: the slope above 0.
        do_stabilize: accepted and not needed: kernels of deep networks are stable.
    """

    def fn(x: Any, a: Any, b: Any) -> Any:
        return a * jnp.minimum(x, 0) + b * jnp.maximum(x, 0)

    return _elementwise(fn, a, b)


@layer
def Relu(do_stabilize: bool = False) -> Layer:
    """max(x, 0)."""
    return _elementwise(lambda x: jnp.maximum(x, 0))


@layer
def LeakyRelu(alpha: Any, do_stabilize: bool = False) -> Layer:
    """max(x, 0) + alpha min(x, 0)."""
    return ABRelu(alpha, 1, do_stabilize)


@layer
def Abs(do_stabilize: bool = False) -> Layer:
    """|x|."""
    return _elementwise(jnp.abs)


@layer
def Sign() -> Layer:
    """The sign of x; its derivative is 0, so its tangent kernel is that behind it."""
    return _elementwise(jnp.sign)


@layer
def Exp(a: Any = 1, b: Any = 1) -> Layer:
    """A exp(b x)."""
    return _elementwise(lambda x, a, b: a * jnp.exp(b * x), a, b)


@layer
def Gaussian(a: Any = 1, b: Any = -1) -> Layer:
    """A exp(b x^2)."""
    return _elementwise(lambda x, a, b: a * jnp.exp(b * x**2), a, b)


@layer
def Hermite(degree: int) -> Layer:
    """The Hermite polynomial of a degree, of norm 1 under the standard Gaussian.

    Args:
        degree: a whole number, not negative.
    """
    _degree(degree)
    series = np.polynomial.HermiteE.basis(degree).convert(kind=np.polynomial.Polynomial)
    norm = math.sqrt(math.factorial(degree))
    return Polynomial([float(c) / norm for c in series.coef])


@layer
def Monomial(degree: int) -> Layer:
    """x^degree.

    Args:
        degree: a whole number, not negative.
    """
    _degree(degree)
    return _elementwise(lambda x: x**degree)


@layer
def RectifiedMonomial(degree: int) -> Layer:
    """x^degree for x >= 0, and 0 below.

    Args:
        degree: a whole number, not negative.
    """
    _degree(degree)
    return _elementwise(lambda x: jnp.where(x >= 0, x**degree, 0.0))


@layer
def Polynomial(coef: Sequence[float]) -> Layer:
    """coef[0] + coef[1] x + coef[2] x^2 + ...

    Args:
        coef: the coefficients, of the lowest power first.
    """
    if len(coef) == 0:
        raise InputError("`coef` is empty; give at least one coefficient.")

    def fn(x: Any) -> Any:
        total = jnp.full_like(x, coef[-1])
        for c in reversed(coef[:-1]):
            total = total * x + c
        return total

    return _elementwise(fn)


@layer
def Elementwise(
    fn: Callable[[Any], Any] | None = None,
    nngp_fn: Callable[[Any, Any, Any], Any] | None = None,
    d_nngp_fn: Callable[[Any, Any, Any], Any] | None = None,
) -> Layer:
    """Any function, entry by entry; the compiler finds its kernel.

    Args:
        fn: a function of scalars, written with `jax.numpy`.
        nngp_fn: a kernel to be used in its place: E f(u) f(v) for Gaussian u, v of
            mean 0, as a function of the covariance and the two variances. Not needed:
            without it kernels are exact, whatever `fn` is. Without `fn` there is no
            finite network.
        d_nngp_fn: E f'(u) f'(v); by default the derivative of `nngp_fn` by its first
            argument.

    Raises:
        InputError: neither `fn` nor `nngp_fn` is given.
    """
    if nngp_fn is None:
        if fn is None:
            raise InputError("`Elementwise` takes a function `fn`, or its `nngp_fn`.")
        return _elementwise(fn)
    return _with_dual(fn, define_dual(fn or _identity, nngp_fn, d_nngp_fn))


@layer
def ElementwiseNumerical(
    fn: Callable[[Any], Any], deg: int, df: Callable[[Any], Any] | None = None
) -> Layer:
    """Any function, its kernel by Gauss-Hermite quadrature with `deg` x `deg` points.

    The numbers of Neural Tangents. They are *not* those of the network: for tanh and
    deg=25 they are 2e-3 off. `Elementwise(fn)` is exact, and as general.

    Args:
        fn: a function on arrays, entry by entry.
        deg: the number of points.
        df: its derivative; by automatic differentiation if None.

    Raises:
        InputError: `deg` is not a positive whole number.

    References:
        Han et al. (2022), https://arxiv.org/abs/2209.04121, equation 13.
    """
    _degree(deg)
    if deg < 1:
        raise InputError(f"`deg`, the number of points, should be positive: {deg!r}.")
    return _with_dual(fn, quadrature_dual(fn, int(deg), df), is_symmetric=False)


@layer
def ExpNormalized(gamma: Any = 1, shift: Any = -1, do_clip: bool = False) -> Layer:
    """The normalised Gaussian kernel: r exp(gamma (K / r + shift)), r = sqrt(K11 K22).

    No function of one entry has it: there is no finite network.

    Args:
        gamma: the scale of the exponent.
        shift: what is added to the correlation.
        do_clip: whether correlations beyond 1 by rounding are cut off.

    References:
        Shankar et al. (2020), https://arxiv.org/abs/2003.02237, page 6.
    """

    def kernel(c: Any, a: Any, b: Any) -> Any:
        size = jnp.sqrt(a * b)
        safe = jnp.where(size > 0, size, 1.0)
        correlation = c / safe
        if do_clip:
            correlation = jnp.clip(correlation, -1, 1)
        return size * jnp.exp(gamma * (correlation + shift))

    def slope(c: Any, a: Any, b: Any) -> Any:
        size = jnp.sqrt(a * b)
        correlation = c / jnp.where(size > 0, size, 1.0)
        if do_clip:
            correlation = jnp.clip(correlation, -1, 1)
        return gamma * jnp.exp(gamma * (correlation + shift))

    return _with_dual(None, define_dual(_identity, kernel, slope))


def _identity(x: Any) -> Any:
    return x


def _with_dual(
    fn: Callable[[Any], Any] | None, name: str, is_symmetric: bool = True
) -> Layer:
    """A function under a name that stands for its expectations in the limit."""
    in_the_limit = given(name)

    def run(weights: Any, x: Any, is_infinite: bool = False, **kwargs: Any) -> Any:
        if is_infinite:
            return in_the_limit(x)
        if fn is None:
            raise UnsupportedError(
                "This layer is given by its kernel alone, so there is no finite "
                "network: give `stax.Elementwise` a function `fn`."
            )
        return fn(x)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        symmetric = signal.is_symmetric and is_symmetric
        return signal.after(is_gaussian=False, is_symmetric=symmetric), ()

    return layer_of(Leaf(run, declared))


@layer
def Tanh() -> Layer:
    """tanh(x)."""
    return _elementwise(jnp.tanh)


@layer
def Sigmoid() -> Layer:
    """1 / (1 + exp(-x))."""
    return _elementwise(jax.nn.sigmoid)


@layer
def Softplus() -> Layer:
    """log(1 + exp(x))."""
    return _elementwise(jax.nn.softplus)


@layer
def Elu(alpha: Any = 1.0) -> Layer:
    """X above 0, alpha (exp(x) - 1) below."""
    return _elementwise(jax.nn.elu, alpha)


@layer
def Selu() -> Layer:
    """`jax.nn.selu`."""
    return _elementwise(jax.nn.selu)


@layer
def Silu() -> Layer:
    """X / (1 + exp(-x)), also called swish."""
    return _elementwise(jax.nn.silu)


def _degree(degree: Any) -> None:
    if isinstance(degree, bool) or int(degree) != degree or degree < 0:
        raise InputError(
            f"`degree` should be a whole number that is not negative, got {degree!r}."
        )
