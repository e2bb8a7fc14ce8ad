"""Kernels of one finite network: any function, with its parameters.

Names, arguments and the order of axes are those of Neural Tangents, so that its users
need to change one import.

References:
    Novak et al. (2020), Neural Tangents: fast and easy infinite neural networks in
    Python, https://arxiv.org/abs/1912.02803.
    Novak, Sohl-Dickstein & Schoenholz (2022), Fast finite width neural tangent kernel,
    https://arxiv.org/abs/2206.08720.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError, ShapeMismatchError, UnsupportedError
from .._kernel import check_names, returned, wanted
from ._implementation import Chooser, NtkImplementation
from ._independent import independent
from ._inputs import Inputs, in_units
from ._keywords import is_absent, of_both
from ._methods import Problem, kernel
from ._pairing import Axes, Pairing, pairing
from ._variables import Variables, split

ApplyFn = Callable[..., Any]
"""f(params, x, **kwargs), pytrees to a pytree of arrays."""

NAMES = ("nngp", "ntk")


def empirical_nngp_fn(
    f: ApplyFn, trace_axes: Axes = (-1,), diagonal_axes: Axes = ()
) -> Callable[..., Any]:
    """The kernel f(x1) f(x2)ᵀ of the outputs of one finite network.

    An output (N, H, C) has a kernel (N1, N2, H1, H2, C1, C2): every axis twice, side by
    side. The leaves of an output that is a pytree have their own kernels, without the
    covariances between leaves.

    Args:
        f: the network, `f(params, x, **kwargs)`; pytrees to a pytree of real arrays.
        trace_axes: axes of every output to average over: the mean of the kernel where
            both indices are equal. They are not in the kernel.
        diagonal_axes: axes of every output of which only equal indices are wanted. They
            stand once.

    Returns:
        `nngp_fn(x1, x2, params, **apply_fn_kwargs)`, a pytree as the output. `x2` None
        means `x1`. A keyword argument that is a pair is one value for each of `x1`
        and `x2`. A random key `rng` is used for both where `x1` equals `x2`, and
        otherwise another one is made of it for `x2`.

    Raises:
        InputError: (by `nngp_fn`) the axes are not those of the outputs.
        ShapeMismatchError: the outputs for `x1` and `x2` do not go together.
        UnsupportedError: complex outputs.
    """

    def nngp_fn(x1: Any, x2: Any, params: Any, **apply_fn_kwargs: Any) -> Any:
        one, two = of_both(apply_fn_kwargs, x1, x2)
        first, tree = jax.tree.flatten(f(params, x1, **one))
        second, tree2 = first, tree
        if not is_absent(x2):
            second, tree2 = jax.tree.flatten(f(params, x2, **two))
        _check_structures(tree, tree2)
        kernels = []
        for a, b in zip(map(jnp.asarray, first), map(jnp.asarray, second), strict=True):
            _refuse_complex("outputs", [a, b])
            pairs = pairing(a.shape, b.shape, trace_axes, diagonal_axes)
            with jax.default_matmul_precision("highest"):
                kernels.append(pairs.kernel(_outer(pairs), a, b))
        return tree.unflatten(kernels)

    return nngp_fn


def empirical_ntk_fn(
    f: ApplyFn,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """The kernel J(x1) J(x2)ᵀ of one finite network, J its Jacobian by parameters.

    Args:
        f: the network, as for `empirical_nngp_fn`. Its real parameters are
            differentiated by; leaves of other types (integers, random keys) are held
            fixed.
        trace_axes: as for `empirical_nngp_fn`.
        diagonal_axes: as for `empirical_nngp_fn`.
        vmap_axes: axes along which inputs do not interact, so that every entry may be
            differentiated apart, which costs far less: a triple of the axes in `x`, in
            the output, and by name in keyword arguments. Each is one axis, or a pytree
            of axes for parts of its argument; None where an argument is shared. What
            is no triple stands for the axes in `x` and in the output: 0 is right for a
            network without batch normalisation or dropout. With the wrong axes the
            kernel is another one. None: inputs along axis 0 are differentiated apart
            where it is seen, by tracing the network for several inputs and for one,
            that they do not interact (products, convolutions, nonlinearities, pooling,
            loops over positions); else the whole batch is.
        implementation: the method, see `NtkImplementation`.
        _j_rules: accepted for callers of Neural Tangents, without effect.
        _s_rules: the same.
        _fwd: the same.

    Returns:
        `ntk_fn(x1, x2, params, **apply_fn_kwargs)`, as that of `empirical_nngp_fn`. It
        is not compiled: wrap it in `jax.jit`.

    Raises:
        InputError: there is no such implementation; (by `ntk_fn`) axes that are not
            those of inputs or outputs, or an output of integers.
        ShapeMismatchError: the outputs for `x1` and `x2` do not go together, or not
            with `vmap_axes`.
        UnsupportedError: complex parameters or outputs.
    """
    chooser = Chooser(implementation)

    def ntk_fn(x1: Any, x2: Any, params: Any, **apply_fn_kwargs: Any) -> Any:
        variables, join = split(params)
        _refuse_complex("parameters", variables.values())

        def of_variables(variables: Variables, x: Any, **kwargs: Any) -> Any:
            return f(join(variables), x, **kwargs)

        one, two = of_both(apply_fn_kwargs, x1, x2)
        with jax.default_matmul_precision("highest"):
            axes = vmap_axes
            if axes is None:
                axes = _found_axes(of_variables, variables, (x1, one), (x2, two))
            first = in_units(of_variables, variables, x1, one, axes)
            second = first
            if not is_absent(x2):
                second = in_units(of_variables, variables, x2, two, axes)
            problems = _problems(variables, first, second, trace_axes, diagonal_axes)
            arguments = (x1, x2, variables, apply_fn_kwargs)
            method = chooser.method(problems, arguments)
            kernels = [kernel(p, method) for p in problems]
        return first.tree.unflatten(
            k.astype(y.dtype) for k, y in zip(kernels, first.outputs, strict=True)
        )

    return ntk_fn


def empirical_kernel_fn(
    f: ApplyFn,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """Both kernels of one finite network.

    Args:
        f: as for `empirical_ntk_fn`.
        trace_axes: as for `empirical_nngp_fn`.
        diagonal_axes: as for `empirical_nngp_fn`.
        vmap_axes: as for `empirical_ntk_fn`.
        implementation: as for `empirical_ntk_fn`.
        _j_rules: accepted for callers of Neural Tangents, without effect.
        _s_rules: the same.
        _fwd: the same.

    Returns:
        `kernel_fn(x1, x2, get, params, **apply_fn_kwargs)`. `get` "nngp" or "ntk" gives
        that kernel; a tuple of them a named tuple `EmpiricalKernel`, for every leaf of
        the output; None one of both.

    Raises:
        InputError: as `empirical_ntk_fn`, and for an unknown name in `get`.
        ShapeMismatchError: as `empirical_ntk_fn`.
        UnsupportedError: as `empirical_ntk_fn`.
    """
    nngp_fn = empirical_nngp_fn(f, trace_axes, diagonal_axes)
    ntk_fn = empirical_ntk_fn(f, trace_axes, diagonal_axes, vmap_axes, implementation)
    kernel_fns = dict(zip(NAMES, (nngp_fn, ntk_fn), strict=True))

    def kernel_fn(
        x1: Any,
        x2: Any,
        get: str | Iterable[str] | None,
        params: Any,
        **apply_fn_kwargs: Any,
    ) -> Any:
        names = wanted(get) or NAMES
        check_names(names, NAMES)
        asked = get if get is None or isinstance(get, str) else names
        found = {
            name: kernel_fns[name](x1, x2, params, **apply_fn_kwargs)
            for name in NAMES
            if name in names
        }

        def leaf(*values: Any) -> Any:
            by_name = dict(zip(found, values, strict=True))
            return returned(by_name, asked, "EmpiricalKernel")

        return jax.tree.map(leaf, *found.values())

    return kernel_fn


def empirical_ntk_vp_fn(
    f: ApplyFn, x1: Any, x2: Any, params: Any, **apply_fn_kwargs: Any
) -> Callable[[Any], Any]:
    """The full tangent kernel as a linear map, by one vjp and one jvp.

    The kernel is never formed: memory is that of one gradient. Where the output is a
    pytree this kernel has the covariances between leaves, which `empirical_ntk_fn`
    leaves out.

    Args:
        f: the network, as for `empirical_ntk_fn`.
        x1: one batch of inputs.
        x2: the other; `x1` when None.
        params: parameters.
        **apply_fn_kwargs: as for `empirical_nngp_fn`.

    Returns:
        A function of a pytree like `f(params, x2)`, to the sum over its entries of
        kernel times entry, like `f(params, x1)`.

    Raises:
        InputError: an output of integers.
        ShapeMismatchError: (by the function) its argument is not like `f(params, x2)`.
        UnsupportedError: complex parameters or outputs.
    """
    variables, join = split(params)
    _refuse_complex("parameters", variables.values())
    one, two = of_both(apply_fn_kwargs, x1, x2)
    inputs, options = (x1, one) if is_absent(x2) else (x2, two)

    def f1(variables: Variables) -> Any:
        return f(join(variables), x1, **one)

    def f2(variables: Variables) -> Any:
        return f(join(variables), inputs, **options)

    for run in (f1, f2):
        _check_real(jax.tree.leaves(jax.eval_shape(run, variables)))

    def ntk_vp_fn(cotangents: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            y, pull = jax.vjp(f2, variables)
            (gradient,) = pull(_like("cotangents", cotangents, y))
            return jax.jvp(f1, (variables,), (gradient,))[1]

    return ntk_vp_fn


def _found_axes(
    f: Callable[..., Any], variables: Variables, *sides: tuple[Any, Mapping[str, Any]]
) -> Any:
    """The `vmap_axes` where inputs do not interact in any batch; None if they may."""
    found = [
        independent(lambda v, x, options=options: f(v, x, **options), variables, x)
        for x, options in sides
        if not is_absent(x)
    ]
    return found[0] if all(axes == found[0] for axes in found) else None


def _problems(
    variables: Variables,
    first: Inputs,
    second: Inputs,
    trace_axes: Axes,
    diagonal_axes: Axes,
) -> list[Problem]:
    """One for every leaf of the output."""
    _check_structures(first.tree, second.tree)
    problems = []
    for i, (a, b) in enumerate(zip(first.outputs, second.outputs, strict=True)):
        _check_real([a, b])
        units = first.axes[i]
        pairs = pairing(a.shape, b.shape, trace_axes, diagonal_axes, units)
        problems.append(Problem(variables, first, second, pairs, i))
    return problems


def _outer(pairs: Pairing) -> Callable[[Any, Any], jax.Array]:
    def compare(a: Any, b: Any) -> jax.Array:
        return jnp.einsum("dkt,dlt->dkl", pairs.entries(a), pairs.entries(b))

    return compare


def _check_structures(first: Any, second: Any) -> None:
    if first != second:
        raise ShapeMismatchError(
            "The outputs for `x1` and `x2` should have one structure, got "
            f"{first} and {second}."
        )


def _check_real(outputs: Iterable[Any]) -> None:
    outputs = list(outputs)
    _refuse_complex("outputs", outputs)
    for y in outputs:
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise InputError(
                "A tangent kernel needs outputs of real numbers, which have "
                f"derivatives; got an output of type {y.dtype}."
            )


def _refuse_complex(what: str, arrays: Iterable[Any]) -> None:
    for a in arrays:
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            raise UnsupportedError(
                f"Kernels of complex {what} are not covered, got type {a.dtype}: give "
                "real and imaginary parts as two arrays."
            )


def _like(name: str, given: Any, expected: Any) -> Any:
    """A pytree in the structure, shapes and types of another."""
    leaves, tree = jax.tree.flatten(given)
    wanted_leaves, wanted_tree = jax.tree.flatten(expected)
    shapes = [jnp.shape(a) for a in leaves]
    wanted_shapes = [a.shape for a in wanted_leaves]
    if tree != wanted_tree or shapes != wanted_shapes:
        raise ShapeMismatchError(
            f"`{name}` should be of the structure {wanted_tree} and shapes "
            f"{wanted_shapes}, got {tree} and {shapes}."
        )
    return tree.unflatten(
        jnp.asarray(a, b.dtype) for a, b in zip(leaves, wanted_leaves, strict=True)
    )
