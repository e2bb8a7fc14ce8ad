"""The weights of a layer: one declaration for the finite network and for its limit."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, UnsupportedError
from .._jax import is_concrete
from ..trace import Normal, normal

PARAMETERIZATIONS = ("ntk", "standard")


@dataclasses.dataclass(frozen=True)
class Weight:
    r"""An array of independent Gaussian weights.

    The network computes with the effective weight, of variance
    $\sigma^2/\text{fan-in}$. The variable $\theta$ that is trained is, in the
    parameterisation "ntk", $w = \sigma\theta/\sqrt{\text{fan-in}}$ with
    $\theta \sim N(0, 1)$; in "standard", $w = \theta/\sqrt s$.

    Attributes:
        shape: sizes, and widths in the limit.
        std: the standard deviation $\sigma$; may be traced.
        fan_in: the axes whose sizes divide the variance.
        parameterization: "ntk" or "standard".
        s: the width of the input of the layer in units of that of the base network,
            for "standard".

    References:
        Jacot et al. (2018), https://arxiv.org/abs/1806.07572, page 3; Sohl-Dickstein
        et al. (2020), https://arxiv.org/abs/2001.07301, tables 1 and 2.
    """

    shape: tuple[Any, ...]
    std: Any = 1.0
    fan_in: tuple[int, ...] = ()
    parameterization: str = "ntk"
    s: int = 1

    def declared(self) -> Normal:
        """The weight in the limit."""
        return normal(
            self.shape,
            std=self.std,
            fan_in=self.fan_in,
            parameterization=self.parameterization,
        )

    def drawn(self, key: Any) -> jax.Array:
        r"""The trained variable $\theta$ at initialisation."""
        theta = jax.random.normal(key, self.shape)
        if self.parameterization == "ntk":
            return theta
        base = math.prod(self.shape[a] for a in self.fan_in) / self.s
        return theta * self.std / math.sqrt(base)

    def effective(self, theta: Any) -> Any:
        """What the network computes with, from the trained variable."""
        if self.parameterization == "ntk":
            size = math.prod(theta.shape[a] for a in self.fan_in)
            return theta * (self.std / math.sqrt(size))
        return theta / math.sqrt(self.s) if self.fan_in and self.s != 1 else theta

    def unstacked(self) -> "Weight":
        """One of them: the inverse of `stacked`."""
        fan_in = tuple(a - 1 for a in self.fan_in)
        return dataclasses.replace(self, shape=self.shape[1:], fan_in=fan_in)

    def stacked(self, count: int) -> "Weight":
        """So many of them, independent, along a new first axis."""
        fan_in = tuple(a + 1 for a in self.fan_in)
        return dataclasses.replace(self, shape=(count, *self.shape), fan_in=fan_in)


def parameterization_of(name: str) -> str:
    """The parameterisation by its name, in any case.

    Raises:
        InputError: there is none of this name.
    """
    if str(name).lower() not in PARAMETERIZATIONS:
        raise InputError(
            f"`parameterization` should be 'ntk' or 'standard', got {name!r}."
        )
    return str(name).lower()


@dataclasses.dataclass(frozen=True, eq=False)
class Custom:
    """The parameters that a user's own `init_fn` draws.

    Attributes:
        init_fn: `init_fn(rng, shape)` gives the shape of the output and parameters.
        shape: of the input.
    """

    init_fn: Callable[..., Any]
    shape: Any

    def declared(self) -> Any:
        """Nothing, if there are no parameters.

        Raises:
            UnsupportedError: there are.
        """
        _, params = self._abstract()
        if jax.tree.leaves(params):
            raise UnsupportedError(
                "The kernel of a layer with an `init_fn` of its own is not known, as "
                "its parameters are not declared: write the network as a function and "
                "declare them with `widelimit.normal`, or of layers of "
                "`widelimit.stax`."
            )
        return params

    def drawn(self, key: Any) -> Any:
        """The parameters."""
        return self.init_fn(key, self.shape)[1]

    def effective(self, theta: Any) -> Any:
        """The parameters, as they are."""
        return theta

    def shape_after(self) -> Any:
        """The shape of the output."""
        return self._abstract()[0]

    def _abstract(self) -> tuple[Any, Any]:
        """The shape of the output, and of the parameters; nothing is drawn."""
        shape = None

        def params_only(key: Any) -> Any:
            nonlocal shape
            shape, params = self.init_fn(key, self.shape)
            return params

        params = jax.eval_shape(params_only, jax.eval_shape(jax.random.PRNGKey, 0))
        return shape, params


@dataclasses.dataclass(frozen=True, eq=False)
class Hyperparameter:
    """A number that the limit depends on, and that is traced: nothing is drawn.

    Attributes:
        value: the number.
    """

    value: Any

    def declared(self) -> Any:
        """The number."""
        return jnp.asarray(self.value)


def is_weight(w: Any) -> bool:
    """Whether this is a declaration, for `jax.tree.map`."""
    return isinstance(w, Weight | Custom | Hyperparameter)


def declared(weights: Any) -> Any:
    """A pytree of declarations, as `widelimit.limit` takes them."""
    return jax.tree.map(lambda w: w.declared(), weights, is_leaf=is_weight)


def drawn(weights: Any, key: Any) -> Any:
    """A pytree of trained variables at initialisation.

    A weight that a layer does not have has a key too: draws do not depend on it.
    """
    leaves, tree = jax.tree.flatten(
        weights, is_leaf=lambda w: is_weight(w) or w is None
    )
    if len(leaves) == 1:
        return tree.unflatten([w.drawn(key) for w in leaves])
    keys = jax.random.split(key, len(leaves)) if leaves else ()
    return tree.unflatten(
        None if w is None else w.drawn(k) for w, k in zip(leaves, keys, strict=True)
    )


def effective(weights: Any, theta: Any) -> Any:
    """What the network computes with.

    Raises:
        InputError: `theta` is not of this network.
    """
    leaves, tree = jax.tree.flatten(
        weights, is_leaf=lambda w: is_weight(w) or w is None
    )
    try:
        values = tree.flatten_up_to(theta)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"The parameters are not those of this network: {error}"
        ) from error
    return tree.unflatten(
        _absent(v) if w is None else w.effective(v)
        for w, v in zip(leaves, values, strict=True)
    )


def _absent(value: Any) -> None:
    """What stands for a bias that there is not: None, or 0 as in the peer's examples.

    Raises:
        InputError: a bias is given.
    """
    if value is not None and not (is_concrete(value) and not np.asarray(value).any()):
        raise InputError(
            "A bias is given for a layer that has none: give it `b_std`, or None (or "
            "0.0) in the place of its bias."
        )
