"""Compare the limit with real networks.

For every width and seed a network is drawn and run. At each tap its empirical second
moment is (1/n) sum_a h_a h'_a; at the output it is the average of f f' over the last
axis (and over several draws of the readout, where the output has few columns). For the
gradient at a tap it is sum_a df/dh_a df'/dh'_a, averaged over the last axis too. Single
networks deviate from the limit like n**-0.5 where the moment averages over a width.
The average over seeds deviates by its standard error and by a bias of order 1/n, so
the verdict is taken at the largest width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, ShapeMismatchError
from ..trace._declare import Constant, Normal, trial_shape, widths_in
from ._ensemble import MEAN, Ensemble
from ._gradients import GRADIENT, Gradients
from ._moments import Layout, layouts
from ._network import FiniteNetwork
from ._report import Check, Row
from ._statistics import Running, critical_t, slope

NTK = "ntk"


def check(
    f: Callable[..., Any],
    params: Any,
    x: Any,
    predicted: Mapping[str, Any],
    widths: Sequence[int] = (128, 512, 2048),
    seeds: int = 16,
    key: Any = None,
    *,
    trace_axes: Sequence[int] = (-1,),
    one_batch: Callable[[Any], bool] | None = None,
    output: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Compare predicted second moments with those of finite networks.

    The verdict is a two-sided t-test across seeds (never across coordinates) for every
    distinct entry at the largest width, at level 1 % after Bonferroni's correction for
    the number of entries of all quantities.

    Args:
        f: the network, `f(params, x)`.
        params: its declarations.
        x: a batch of N inputs.
        predicted: by name of the tap, or "output", the second moment in the limit, of
            shape (N, N, *I, *I'). That of the output is its covariance; where the
            output has a mean, give that as "output:mean", of the output's shape. "ntk"
            is its tangent kernel, and "gradient:tap" the second moment of
            sqrt(n) df/dtap.
        widths: values of the common scale; a width is its ratio times that.
        seeds: networks at each width.
        key: a JAX random key; `jax.random.key(0)` if None.
        trace_axes: axes of the output to average over.
        one_batch: for the tangent kernel and gradients, see `at`.
        output: the position of the output f whose gradients are compared, among the
            axes that are not those of the inputs and not averaged.
        progress: called with the networks done so far and their total number.

    Raises:
        InputError: too few seeds, widths that do not fit, nothing to compare.
        ShapeMismatchError: a prediction has another shape than the quantity.
    """
    scales, sizes = _sizes(widths, seeds, params)
    key = jax.random.key(0) if key is None else key
    leaves, tree = jax.tree_util.tree_flatten(params)
    x = jax.tree_util.tree_map(jnp.asarray, x)
    nets = [Ensemble(f, tuple(leaves), tree, x, size) for size in sizes]
    found, left_out = layouts(
        lambda factor, more: nets[0].wider(factor).shapes(more), trace_axes
    )
    taps = {k: v for k, v in found.items() if GRADIENT + k in predicted}
    gradients = None
    if taps:
        if len(output) != len(found["output"].index):
            raise InputError(
                "Gradients are of one position of the output: give `output`, one index "
                f"for each of its axes {found['output'].positions[1:]}, got {output!r}."
            )
        coupled = one_batch is None or one_batch(x)
        gradients = Gradients(taps, found["output"], tuple(output), coupled)
    found |= {GRADIENT + k: layout for k, layout in taps.items()}
    compared = {name: k for name, k in found.items() if name in predicted}
    seconds = {name: k for name, k in compared.items() if not name.startswith(GRADIENT)}
    goals = _goals(predicted, found, left_out)
    epsilon = float(jnp.finfo(nets[0].dtype).eps)
    runs: list[dict[str, Running]] = []
    for i, net in enumerate(nets):
        running = {k: Running(*goal, epsilon) for k, goal in goals.items()}
        rngs = _generators(key, scales[i], seeds)
        network = FiniteNetwork(
            f, params, sizes[i], trace_axes=trace_axes, one_batch=one_batch
        )
        for s, one in enumerate(net.moments(seconds, rngs, MEAN in goals, gradients)):
            if NTK in goals:
                theta = network.draw(jax.random.fold_in(key, scales[i] * seeds + s))
                kernel = _square(NTK, network.ntk(theta, x), found["output"])
                one = {**one, NTK: kernel}
            for name, value in one.items():
                running[name].add(_entries(name, value))
            if progress is not None:
                progress(i * seeds + s + 1, len(scales) * seeds)
        runs.append(running)
    left_out |= {k: "nothing was predicted" for k in found if k not in goals}
    notes = [f"{name} is left out: {why}" for name, why in left_out.items()]
    return _result(scales, seeds, runs, compared, tuple(notes))


def _result(
    scales: tuple[int, ...],
    seeds: int,
    runs: Sequence[Mapping[str, Running]],
    compared: Mapping[str, Layout],
    notes: tuple[str, ...],
) -> Check:
    concentrates = {name: layout.concentrates for name, layout in compared.items()}
    concentrates[NTK] = True
    rows = tuple(
        _row(name, scale, run[name], concentrates.get(name, False))
        for name in runs[0]
        for scale, run in zip(scales, runs, strict=True)
    )
    slopes = {
        name: slope(scales, [run[name].deviation for run in runs])
        for name in runs[0]
        if concentrates.get(name, False)
    }
    entries = sum(r.goal.size for r in runs[-1].values())
    return Check(
        rows=rows,
        widths=scales,
        seeds=seeds,
        critical_t=critical_t(seeds, entries),
        slopes={name: s for name, s in slopes.items() if s is not None},
        notes=notes,
    )


def _generators(key: Any, scale: int, seeds: int) -> list[np.random.Generator]:
    """Independent generators that follow from the key."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = np.asarray(jax.random.key_data(key) if typed else key).ravel()
    return [
        np.random.default_rng([*(int(w) for w in words), scale, s])
        for s in range(seeds)
    ]


def _row(name: str, scale: int, running: Running, concentrates: bool) -> Row:
    r = running
    return Row(name, scale, r.deviation, r.largest_t, r.goal.size, concentrates)


def _sizes(
    widths: Sequence[int], seeds: int, params: Any
) -> tuple[tuple[int, ...], list[dict[str, int]]]:
    """The common scales in increasing order, and every width at each of them."""
    given = list(np.atleast_1d(np.asarray(widths, object)))
    whole = all(
        isinstance(w, int | np.integer) and not isinstance(w, bool) and w > 0
        for w in given
    )
    if not given or not whole or len(set(given)) < len(given):
        raise InputError(
            "widths should be different positive whole numbers, such as "
            f"(128, 512, 2048), got {widths!r}."
        )
    if not isinstance(seeds, int | np.integer) or seeds < 2:
        raise InputError(
            f"seeds should be a whole number from 2 on (16 is usual): standard errors "
            f"are across seeds; got {seeds!r}."
        )
    declared = widths_in(params)
    scales = tuple(sorted(int(w) for w in given))
    sizes = [
        {name: max(1, round(scale * w.ratio)) for name, w in declared.items()}
        for scale in scales
    ]
    for size in sizes:
        for leaf in jax.tree_util.tree_leaves(params):
            if isinstance(leaf, Normal | Constant):
                trial_shape(leaf.shape, size)
    return scales, sizes


def _goals(
    predicted: Mapping[str, Any],
    found: Mapping[str, Layout],
    left_out: Mapping[str, str],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The distinct predicted entries and their natural size, by name."""
    unknown = [k for k in predicted if k not in found and k not in left_out]
    unknown = [k for k in unknown if k not in (MEAN, NTK)]
    unknown = [k for k in unknown if k.removeprefix(GRADIENT) not in left_out]
    if unknown or not set(predicted) & {*found, NTK}:
        given = ", ".join(map(repr, predicted)) or "nothing"
        raise InputError(
            f"Predictions are given for {given}; the network has "
            f"{', '.join(map(repr, found))}."
        )
    matrices = {
        k: _square(k, predicted[k], v)
        for k, v in {**found, NTK: found["output"]}.items()
        if k in predicted
    }
    means = None
    if MEAN in predicted:
        if "output" not in matrices or found["output"].concentrates:
            raise InputError(
                f"{MEAN!r} goes with a prediction for 'output', of an output that is "
                "not wide."
            )
        means = _rows(predicted[MEAN], found["output"])
        second = means @ means.T / means.shape[1]
        matrices["output"] = matrices["output"] + second
    sizes = {k: np.sqrt(np.abs(np.diag(m))) for k, m in matrices.items()}
    goals = {
        k: (_entries(k, m), _entries(k, np.outer(sizes[k], sizes[k])))
        for k, m in matrices.items()
    }
    if means is not None:
        size = np.broadcast_to(sizes["output"][:, None], means.shape)
        goals[MEAN] = (means.ravel(), size.ravel())
    return goals


def _square(name: str, prediction: Any, layout: Layout) -> np.ndarray:
    """The prediction as a matrix over (input, index)."""
    array = np.asarray(prediction, np.float64)
    inputs, *index = layout.positions
    expected = (inputs, inputs, *index, *index)
    if array.shape != expected:
        raise ShapeMismatchError(
            f"The prediction for {name!r} should have shape {expected} (inputs, "
            f"inputs, index, index), got {array.shape}."
        )
    _finite(name, array)
    k = len(index)
    order = (0, *range(2, 2 + k), 1, *range(2 + k, 2 + 2 * k))
    side = math.prod(layout.positions)
    return array.transpose(order).reshape(side, side)


def _rows(prediction: Any, layout: Layout) -> np.ndarray:
    """The predicted mean of the output, one row for every (input, index)."""
    array = np.asarray(prediction, np.float64)
    order = (layout.batch, *layout.index, *layout.averaged)
    moved = array.transpose(order) if array.ndim == len(order) else array
    k = len(layout.positions)
    if (
        moved.shape[:k] != layout.positions
        or math.prod(moved.shape[k:]) != layout.columns
    ):
        raise ShapeMismatchError(
            f"The prediction for {MEAN!r} should have the shape of the output, got "
            f"{array.shape}."
        )
    _finite(MEAN, array)
    return moved.reshape(math.prod(layout.positions), layout.columns)


def _finite(name: str, array: np.ndarray) -> None:
    if not np.all(np.isfinite(array)):
        raise InputError(f"The prediction for {name!r} is not finite everywhere.")


def _entries(name: str, value: np.ndarray) -> np.ndarray:
    """The distinct entries of a second moment; all entries of a mean."""
    if name == MEAN:
        return value.ravel()
    return value[np.triu_indices(len(value))]
