"""A network and its program on the very same random numbers.

The program's input lines are drawn at small widths, and the network's parameters are
put together from these draws: an entry of a matrix line has variance std^2 / columns,
one of the parameter std^2 (over its fan-in). Equal outputs then say that the program
computes the network, with no limit and no statistics in between.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from coverage_networks import primitives

import widelimit as wl
from widelimit.program import TensorProgram
from widelimit.program._run import Run
from widelimit.trace import (
    Network,
    Normal,
    path_name,
    trial_shape,
    widths_are,
    widths_in,
)
from widelimit.trace import _compile as compiler
from widelimit.trace._declare import Constant, fan_in_root
from widelimit.trace._layout import Axis, Block, Unifier, blocks
from widelimit.trace._tracer import Tracer
from widelimit.trace._trained import sample
from widelimit.transform import normal_form

SCALE = 24
"""The width of ratio one; divisible by 2, 3 and 4."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled network, and where the blocks of its parameters are.

    Attributes:
        network: as the package compiles it, for a whole batch.
        layouts: of the wide axes of the parameters, by (parameter, axis).
        orientation: (rows, columns) of the matrix parameters, as axes.
        widths: small ones on the ray of the ratios.
    """

    network: Network
    layouts: Mapping[Any, Axis]
    orientation: Mapping[str, tuple[int, int]]
    widths: dict[str, int]


def small_widths(params: Any) -> dict[str, int]:
    """Widths in their ratios."""
    return {name: int(SCALE * w.ratio) for name, w in widths_in(params).items()}


def compiled(f: Any, params: Any, x: Any) -> Compiled:
    """As `compile_network`, which keeps layouts to itself."""
    struct = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
    graph, ratios = compiler.traced_graph(f, params, struct)
    unifier, layouts, before = Unifier(), {}, -1
    while unifier.structured != before:
        before = unifier.structured
        dry = Tracer(layouts, unifier, ratios, dry=True)
        compiler._interpret(graph, params, struct, dry)
    tracer = Tracer(layouts, unifier, ratios, dry=False)
    (out,) = compiler._interpret(graph, params, struct, tracer)
    network = compiler._network(tracer, out)
    done = normal_form(network.program, network.needed)
    network = network.moved(done.program, done.place)
    return Compiled(network, layouts, tracer.orientation, small_widths(params))


def both(f: Any, params: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of the program and of the network on the same draws."""
    c = compiled(f, params, x)
    draws = draw(c.network.program, c.widths, inputs(params, x))
    paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
    theta = tree.unflatten([_parameter(c, draws, path_name(k), p) for k, p in paths])
    with widths_are(c.widths):
        actual = jax.jit(f)(theta, jnp.asarray(x))
    ((out, _),) = c.network.output.refs
    return np.asarray(draws[c.network.program.lines[out].name]), np.asarray(actual)


def draws_bits(f: Any, params: Any, x: Any) -> bool:
    """Whether the network draws random bits, which cannot be set."""
    g, theta = wl.limit(f, params).at(key=jax.random.key(0), **small_widths(params))
    return "random_bits" in primitives(jax.make_jaxpr(g)(theta, jnp.asarray(x)))


def inputs(params: Any, x: Any) -> dict[str, jax.Array]:
    """What the input lines of the program of a network read."""
    found = {"x": jnp.asarray(x)}
    paths, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
    for path, p in paths:
        match p:
            case Normal():
                found[f"std:{path_name(path)}"] = jnp.asarray(p.std, float)
            case Constant():
                found[f"value:{path_name(path)}"] = jnp.asarray(p.value, float)
            case _:
                found[f"param:{path_name(path)}"] = jnp.asarray(p)
    return found


def draw(
    program: TensorProgram, widths: dict[str, int], data: dict[str, Any]
) -> dict[str, Any]:
    """One draw of every line, matrices too."""
    run = Run(program, widths, data)

    def values(key: jax.Array) -> dict[int, Any]:
        run.values(key)
        return run.env

    env = jax.jit(values)(jax.random.key(1))
    return {program.lines[ref].name: value for ref, value in env.items()}


def _declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)


def _parameter(c: Compiled, draws: Mapping[str, Any], name: str, p: Any) -> Any:
    if isinstance(p, Constant):
        return sample(p, c.widths, jax.random.key(0))
    if not isinstance(p, Normal):
        return p
    wide = [a for a, s in enumerate(p.shape) if not isinstance(s, int)]
    if len(wide) == 2:
        value = _matrix(c, draws, name, p, (wide[0], wide[1]))
    elif wide and name not in draws and f"{name}_0" not in draws:
        # The network does not use it.
        return jnp.zeros(trial_shape(p.shape, c.widths))
    elif wide:
        parts = blocks(c.layouts[name, wide[0]])
        names = [name if len(parts) == 1 else f"{name}_{i}" for i in range(len(parts))]
        placed = [
            _place(draws[line], wide[0], b)
            for line, b in zip(names, parts, strict=True)
        ]
        value = np.concatenate(placed, axis=wide[0])
    else:
        value = draws[name]
    assert value.shape == trial_shape(p.shape, c.widths)
    return jnp.asarray(value / fan_in_root(p, c.widths))


def _matrix(
    c: Compiled, draws: Mapping[str, Any], name: str, p: Normal, wide: tuple[int, int]
) -> np.ndarray:
    first, second = (blocks(c.layouts[name, a]) for a in wide)
    single = len(first) == len(second) == 1
    return np.concatenate(
        [
            np.concatenate(
                [
                    _block(
                        c, draws, name if single else f"{name}_{i}_{j}", name, p, b, d
                    )
                    for j, d in enumerate(second)
                ],
                axis=wide[1],
            )
            for i, b in enumerate(first)
        ],
        axis=wide[0],
    )


def _block(
    c: Compiled,
    draws: Mapping[str, Any],
    line: str,
    name: str,
    p: Normal,
    b: Block,
    d: Block,
) -> np.ndarray:
    """The part of a matrix parameter that one matrix line is."""
    one, two = (a for a, s in enumerate(p.shape) if not isinstance(s, int))
    if line not in draws:
        # A block that meets zeros only: any numbers will do.
        shape = list(trial_shape(p.shape, c.widths))
        shape[one], shape[two] = _size(b, c.widths), _size(d, c.widths)
        return np.random.default_rng(7).normal(size=shape)
    value = np.asarray(draws[line])
    value = value * np.sqrt(value.shape[-1])
    if c.orientation[name] != (one, two):
        value = np.swapaxes(value, -1, -2)
    for axis, block in ((one, b), (two, d)):
        if block.count == 1:
            value = np.expand_dims(value, axis)
    value = _place(np.moveaxis(value, -2, 0), two + 1, d)
    return _place(np.moveaxis(value, 0, -1), one, b)


def _size(block: Block, widths: dict[str, int]) -> int:
    return block.count * block.atom.size.dim.size(widths)


def _place(value: Any, axis: int, block: Block) -> np.ndarray:
    """The copies at `axis` and the coordinates, which are last, as one axis."""
    value = np.asarray(value)
    before, after = value.shape[:axis], value.shape[axis + 1 : -1]
    value = value.reshape(
        *before, *block.majors, *block.minors, *after, value.shape[-1]
    )
    value = np.moveaxis(value, -1, axis + len(block.majors))
    return value.reshape(*before, -1, *after)
