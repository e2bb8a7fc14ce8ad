"""Coverage networks: everything that acts on each coordinate alone."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from coverage_table import FLAT, Params, add_network, apply, covers, m, n, readout
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

import widelimit as wl

Activation = Callable[[Array], Array]


def one_hidden_layer(phi: Activation, p: Params, x: Array) -> Array:
    return readout(p, phi(apply(p["U"], x)))


def pointwise(name: str, phi: Activation, *rules: str, fast: bool = False) -> None:
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1))}
    f = functools.partial(one_hidden_layer, phi)
    add_network(name, f, params, FLAT, rules, fast)


def truncate(h: Array) -> Array:
    """Toward zero, as a cast to an integer does."""
    return (2.0 * h).astype(int).astype(h.dtype)


def gradient(f: Activation, h: Array) -> Array:
    """The derivative of a coordinatewise function, by reverse mode."""
    return jax.vjp(f, h)[1](jnp.ones_like(h))[0]


pointwise(
    "arithmetic",
    lambda h: -(h - 2.0) * h / (1.0 + h * h),
    *("neg", "sub", "mul", "div", "add"),
)
pointwise(
    "powers",
    lambda h: jnp.abs(h) ** 1.5 + 0.1 * h**3 - jnp.square(h),
    *("pow", "abs", "integer_pow", "square"),
)
pointwise("integer_power_below_zero", lambda h: (2.0 + h * h) ** -2, "integer_pow")
pointwise(
    "rounding",
    lambda h: jnp.floor(h) + jnp.ceil(2 * h) - 0.5 * jnp.round(3 * h),
    *("floor", "ceil", "round"),
)
pointwise("remainder", lambda h: lax.rem(h, 1.5) + jnp.remainder(h, 0.7), "rem")
pointwise("truncation", truncate, "convert_element_type")
pointwise(
    "extrema",
    lambda h: jnp.maximum(h, -0.5) * jnp.minimum(h, 1.0) + lax.clamp(-0.1, h, 0.2),
    *("max", "min", "clamp"),
)
pointwise("sign", lambda h: jnp.sign(h - 0.3) + h, "sign")
pointwise(
    "comparisons",
    lambda h: (
        jnp.where(h < 1.0, h, 2.0)
        + jnp.where(h <= -1.0, 1.0, 0.0)
        + jnp.where(h > 0.5, h * h, h)
        + jnp.where(h >= 0.0, 0.3, h)
        + jnp.where(h == 0.0, 5.0, 0.1)
        + jnp.where(h != 1.0, 0.2, 7.0)
    ),
    *("lt", "le", "gt", "ge", "eq", "ne", "select_n"),
)
pointwise(
    "logic",
    lambda h: jnp.where(
        jnp.isfinite(h) & ((h > 1.0) | ~(h > -1.0)) ^ (h > 2.0), h, 1.0
    ),
    *("is_finite", "and", "or", "not", "xor"),
)
pointwise(
    "exponentials",
    lambda h: jnp.exp(0.3 * h) + jnp.exp2(-0.4 * h) + jnp.expm1(0.2 * h),
    *("exp", "exp2", "expm1"),
)
pointwise(
    "logarithms",
    lambda h: jnp.log(1.0 + h**2) * jnp.log1p(jnp.abs(h)) + jnp.log2(2.0 + h**2),
    *("log", "log1p"),
)
pointwise(
    "roots",
    lambda h: jnp.sqrt(1.0 + h**2) + lax.rsqrt(1.0 + h**2) + jnp.cbrt(h),
    *("sqrt", "rsqrt", "cbrt"),
)
pointwise("trigonometric", lambda h: jnp.sin(2 * h) + jnp.cos(h + 1), "sin", "cos")
pointwise(
    "inverse_trigonometric",
    lambda h: (
        jnp.tan(0.9 * jnp.sin(h))
        + jnp.arcsin(0.9 * jnp.sin(h))
        + jnp.arccos(0.9 * jnp.cos(h))
        + jnp.arctan(h)
        + jnp.arctan2(h, 1.0 + h**2)
    ),
    *("tan", "asin", "acos", "atan", "atan2"),
)
pointwise(
    "hyperbolic",
    lambda h: jnp.sinh(0.4 * h) + jnp.cosh(0.3 * h) + jnp.tanh(h) + jnp.arcsinh(h),
    *("sinh", "cosh", "tanh", "asinh"),
)
pointwise(
    "inverse_hyperbolic",
    lambda h: jnp.arccosh(1.5 + h**2) + jnp.arctanh(0.8 * jnp.sin(h)),
    *("acosh", "atanh"),
)
pointwise(
    "error_functions",
    lambda h: lax.erf(h) + lax.erfc(h - 1.0) + lax.erf_inv(0.8 * jnp.sin(h)),
    *("erf", "erfc", "erf_inv"),
)
pointwise(
    "gamma_functions",
    lambda h: lax.lgamma(1.0 + h**2) + 0.3 * lax.digamma(2.0 + h**2),
    *("lgamma", "digamma"),
)
pointwise("logistic", lambda h: jax.nn.sigmoid(h) * jax.nn.log_sigmoid(h), "logistic")
pointwise(
    "copies",
    lambda h: checkpoint_name(jnp.array(h, copy=True), "h") + lax.stop_gradient(h),
    *("copy", "name", "stop_gradient"),
)
pointwise(
    "precision", lambda h: jnp.tanh(lax.reduce_precision(h, 11, 52)), "reduce_precision"
)
pointwise(
    "derivative", lambda h: gradient(lambda u: jnp.sin(u) * jnp.tanh(u), h), "add_any"
)


# ----------------------------------------- activations of jax.nn, one of each kind
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
    "soft_sign": jax.nn.soft_sign,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu_tanh": jax.nn.gelu,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "mish": jax.nn.mish,
}


for _name, _phi in ACTIVATIONS.items():
    pointwise(f"jax_nn_{_name}", _phi, fast=_name in ("relu", "gelu_tanh"))


# ------------------------------------------------------ more than one wide argument
_TWO = {"U": wl.normal((4, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}


@covers("mul", "logistic", "split", U=wl.normal((4, 2 * n)), v=wl.normal((n, 1)))
def gated_linear_unit(p: Params, x: Array) -> Array:
    return readout(p, jax.nn.glu(apply(p["U"], x), axis=-1))


@covers("max", "select_n", "gt", **_TWO)
def maximum_of_two_layers(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    k = apply(p["W"], jnp.tanh(h))
    return readout(p, jnp.where(k > 0.5, jnp.maximum(h, k), h * k))


@covers("add", **_TWO)
def residual_through_a_nonlinearity(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    h = jax.nn.relu(h) + apply(p["W"], jax.nn.relu(h))
    return readout(p, jax.nn.relu(h))


@covers("add", U=wl.normal((4, n)), v=wl.normal((n, 1)), fast=True)
def a_signal_added_to_itself(p: Params, x: Array) -> Array:
    h = jnp.tanh(apply(p["U"], x))
    return readout(p, h + h)


@covers("mul", U=wl.normal((4, n)), v=wl.normal((n, 1)))
def a_signal_times_itself(p: Params, x: Array) -> Array:
    h = jax.nn.relu(apply(p["U"], x))
    return readout(p, h * h)


@covers(
    "mul",
    "add",
    U=wl.normal((4, m)),
    W=wl.normal((m, n)),
    b=wl.normal((n,), std=0.4),
    gain=wl.constant((n,), 0.7),
    v=wl.normal((n, 1)),
    c=wl.normal((1,), std=0.3),
)
def biases_and_constants(p: Params, x: Array) -> Array:
    h = apply(p["W"], jnp.sin(apply(p["U"], x)))
    return readout(p, jnp.tanh(p["gain"] * h + p["b"])) + p["c"]
