"""Whether the derivative that JAX takes of a network is that of its values.

The compiler sees what a network computes, and differentiates that. `stop_gradient` and
custom derivatives may say otherwise. Some do not matter (the maximum that softmax
subtracts); so both gradients of a small network are compared.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import scalar
from ._jax import Equation, Graph, Literal, enable_x64, evaluate, trace
from ._small import small_network, small_scales, small_widths

_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def replaced_derivatives(
    f: Callable[..., Any], params: Any, x: Any, graph: Graph | None
) -> tuple[str, ...]:
    """The user's lines with a derivative that is not that of the value; () if none.

    Args:
        f: the network.
        params: its declarations.
        x: a pytree of `jax.ShapeDtypeStruct`, a batch of inputs.
        graph: the network as JAX traces it, at any width; or None.
    """
    if graph is not None and not any(_marked(graph)):
        return ()
    rng = np.random.default_rng(2)

    def data(a: Any) -> Any:
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return rng.standard_normal(a.shape) if floating else np.zeros(a.shape, a.dtype)

    x = jax.tree.map(data, x)
    for width in small_scales(params):
        try:
            with jax.ensure_compile_time_eval(), enable_x64():
                return _replaced(f, params, x, small_widths(params, width))
        except (TypeError, ValueError, ArithmeticError, LookupError):
            continue
    return ()  # it has no gradient in JAX, or fails at every width


def _replaced(
    f: Callable[..., Any], params: Any, x: Any, widths: dict[str, int]
) -> tuple[str, ...]:
    run, theta = small_network(f, params, widths, np.float64)
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, theta))
    graph, out = trace(lambda *t: run(tree.unflatten(t), x), *leaves)
    found = tuple(dict.fromkeys(_marked(graph)))
    if not found:
        return ()
    cotangent = np.random.default_rng(3).standard_normal(out.shape)

    def gradient(g: Callable[..., Any]) -> list[Any]:
        moving = [i for i, a in enumerate(leaves) if a.dtype == np.float64]

        def of(*moved: Any) -> Any:
            full = list(leaves)
            for i, value in zip(moving, moved, strict=True):
                full[i] = value
            return jnp.vdot(g(*full), cotangent)

        return jax.jit(jax.grad(of, range(len(moving))))(*(leaves[i] for i in moving))

    taken = gradient(lambda *t: run(tree.unflatten(t), x))
    plain = gradient(lambda *t: _run(graph, t)[0])
    size = max(float(np.abs(g).max(initial=0.0)) for g in plain)
    same = all(
        np.allclose(a, b, rtol=0.0, atol=1e-8 * size)
        for a, b in zip(taken, plain, strict=True)
    )
    return () if same else found


def _marked(graph: Graph) -> Iterator[str]:
    """Where a derivative is given that could be another one."""
    for e in graph.equations:
        if e.name == "stop_gradient" or (e.name in _CUSTOM and not e.is_of_jax):
            yield e.source
        else:
            for inner in e.graphs:
                yield from _marked(inner)


def _run(graph: Graph, args: Any) -> list[Any]:
    """A graph on arrays, differentiated as what it computes."""
    env: dict[Any, Any] = dict(zip(graph.inputs, args, strict=True))
    env.update(graph.constants)

    def read(atom: Any) -> Any:
        return atom.value if isinstance(atom, Literal) else env[atom]

    for e in graph.equations:
        env.update(zip(e.outputs, _apply(e, [read(a) for a in e.inputs]), strict=True))
    return [read(a) for a in graph.outputs]


def _apply(e: Equation, args: list[Any]) -> Any:
    if e.name == "stop_gradient":
        return args
    if e.name in scalar.CALLS and not e.is_of_jax:
        return _run(e.params[scalar.CALLS[e.name]], args)
    if e.name == "scan" and list(_marked(e.params["jaxpr"])):
        return _scan(e, args)
    return evaluate(e, args)


def _scan(e: Equation, args: list[Any]) -> list[Any]:
    fixed, carried = e.params["num_consts"], e.params["num_carry"]
    constants, state = args[:fixed], args[fixed : fixed + carried]

    def step(state: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        out = _run(e.params["jaxpr"], [*constants, *state, *x])
        return out[:carried], out[carried:]

    state, stacked = jax.lax.scan(
        step, state, args[fixed + carried :], e.params["length"],
        reverse=e.params["reverse"],
    )  # fmt: skip
    return [*state, *stacked]
