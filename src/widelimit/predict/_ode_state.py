"""Outputs of a network under training, with their momentum."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError
from ._namespace import broadcast


@dataclasses.dataclass(frozen=True)
class ODEState:
    r"""Where training is: outputs, and how fast they move. A pytree.

    Attributes:
        fx_train: outputs for the training inputs.
        fx_test: outputs for the test inputs.
        qx_train: with momentum, the derivative of `fx_train` in the time of the
            equation, which is $\sqrt{\eta}$ for a step; None without momentum.
        qx_test: that of `fx_test`.
    """

    fx_train: Any = None
    fx_test: Any = None
    qx_train: Any = None
    qx_test: Any = None

    def replace(self, **changes: Any) -> "ODEState":
        """The state with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """The attributes by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def astuple(self) -> tuple[Any, ...]:
        """The attributes in their order."""
        return tuple(self.asdict().values())


jax.tree_util.register_dataclass(
    ODEState,
    data_fields=[f.name for f in dataclasses.fields(ODEState)],
    meta_fields=[],
)


def whole_state(
    given: ODEState, shape: tuple[int, ...], tested: tuple[int, ...], momentum: bool
) -> ODEState:
    """A state at time 0 with every array in it that training has.

    Args:
        given: the user's; what is None is 0, but without `fx_test` there are no tests.
        shape: of the targets.
        tested: of the test outputs.
        momentum: whether there is momentum.

    Raises:
        ShapeMismatchError: an array has another shape.
        InputError: there are velocities without momentum, or numbers are not finite.
    """
    if not momentum and (given.qx_train is not None or given.qx_test is not None):
        raise InputError(
            "The state has `qx_train` or `qx_test`, velocities of the outputs, which "
            "there are with momentum only; here momentum is None."
        )

    def filled(name: str, value: Any, size: tuple[int, ...]) -> Any:
        return broadcast(jnp, name, 0.0 if value is None else value, size)

    test = given.fx_test is not None
    return ODEState(
        filled("fx_train", given.fx_train, shape),
        filled("fx_test", given.fx_test, tested) if test else None,
        filled("qx_train", given.qx_train, shape) if momentum else None,
        filled("qx_test", given.qx_test, tested) if momentum and test else None,
    )
