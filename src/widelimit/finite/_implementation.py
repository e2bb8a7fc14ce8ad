"""How a finite network's tangent kernel is computed."""

import enum
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from .._errors import InputError
from ._methods import (
    METHODS,
    Method,
    Problem,
    cheapest,
    jacobian_contraction,
    ntk_vector_products,
    structured_derivatives,
)


class NtkImplementation(enum.IntEnum):
    """A method for the tangent kernel of a finite network; all give the same numbers.

    With N1 and N2 inputs, O outputs each, P parameters, and F operations to run the
    network on one input, see Novak et al. (2022), https://arxiv.org/abs/2206.08720,
    table 1:

    Attributes:
        AUTO: the one of the others with the fewest multiplications and other entries
            made, counted in the traced computation for the shapes at hand. What a
            loop of unknown length does is counted once.
        JACOBIAN_CONTRACTION: contract two Jacobians made by reverse mode:
            (N1 + N2) O F + N1 N2 O² P. For few outputs and networks that use their
            parameters often (convolutions).
        NTK_VECTOR_PRODUCTS: push the rows of one Jacobian through the network as
            tangents: N1 N2 O F, and one Jacobian less in memory. For networks that use
            every parameter once, with many outputs.
        STRUCTURED_DERIVATIVES: keep the gradient by a matrix W of h W as h and the
            gradient by h W, and contract those: N1 N2 O² √P in place of N1 N2 O² P for
            a layer of √P units. For matrices that are used in products outside of
            loops (also transposed, several times, scaled), where it pays; by other
            parameters (biases, filters of convolutions, matrices inside `scan`) it
            does as JACOBIAN_CONTRACTION.
    """

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


_METHODS = {
    NtkImplementation.JACOBIAN_CONTRACTION: jacobian_contraction,
    NtkImplementation.NTK_VECTOR_PRODUCTS: ntk_vector_products,
    NtkImplementation.STRUCTURED_DERIVATIVES: structured_derivatives,
}
assert set(_METHODS.values()) == set(METHODS)


class Chooser:
    """The method for every problem.

    Args:
        implementation: one of `NtkImplementation`, or its number.

    Raises:
        InputError: there is no such implementation.
    """

    def __init__(self, implementation: NtkImplementation | int) -> None:
        try:
            self.implementation = NtkImplementation(implementation)
        except ValueError:
            names = ", ".join(f"{i.name} ({i.value})" for i in NtkImplementation)
            raise InputError(
                f"`implementation` should be one of {names}; got {implementation!r}."
            ) from None
        self._known: dict[Hashable, Method] = {}

    def method(self, problems: list[Problem], arguments: Any) -> Method:
        """The method for the problems that arguments of these shapes make."""
        if self.implementation != NtkImplementation.AUTO:
            return _METHODS[self.implementation]
        leaves, tree = jax.tree.flatten(arguments)
        shapes = (tree, *((np.shape(a), str(getattr(a, "dtype", ""))) for a in leaves))
        if shapes not in self._known:
            self._known[shapes] = cheapest(problems)
        return self._known[shapes]
