"""The phase diagram of a layer."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from .._errors import InputError, UnsupportedError
from .._jax import enable_x64, is_concrete
from ..trace import Constant, Normal, Width, path_name, widths_in
from ._diagram import PhaseDiagram
from ._layer import LayerMap, Repeated
from ._points import Ends, Maps, Points, closes, ends

# Points at which two layers are compared with one applied twice.
_TRIALS = 4
_CLOSED = 1e-5


def phase_diagram(
    f: Callable[..., Any],
    params: Any,
    stds: Mapping[str | tuple[str, ...], Any],
    *,
    shape: Any = None,
    variance: float = 1.0,
    correlation: float = 0.5,
) -> PhaseDiagram:
    r"""Signal propagation through a layer repeated without end, over a grid of stds.

    The layer is compiled like any network, and its limit is a map of covariances. It
    is followed to its fixed point: the variance $q^*$ of an input, the correlation
    $c^*$ of two. There, $\chi_1$ is the derivative of the covariance of two equal
    inputs; the correlation length $\xi_c = -1/\log \lambda$ is that of the derivative
    $\lambda$ at $c^*$. The gradient's factor comes from the backward pass of the
    layer, and is the same number under gradient independence. Where a state has
    positions (pixels, tokens) derivatives are matrices, and their largest eigenvalue
    is taken.

    Every layer has weights of its own. Its output should be all that the next layer
    sees: Gaussian of mean zero, or read by weights first. That is checked.

    Args:
        f: a layer, `f(params, h)`, from h of shape (N, *I, n) to the same shape.
        params: its declarations; see `wl.limit`.
        stds: two entries, from the name of a parameter (or a tuple of names) to its
            standard deviations: one axis, increasing, not negative. They replace `std`
            of its declaration, so a fan-in still divides the variance.
        shape: of the state of one input, (*I, n); (n,) with the only width if None.
        variance: of the inputs; where several fixed points exist, this decides.
        correlation: between inputs (and between positions of one), likewise.

    Returns:
        Arrays over the grid, `.plot(path)`, and a summary by `str`.

    Raises:
        InputError: an argument is out of range, or names no random parameter.
        ShapeMismatchError: the layer does not return the shape that it takes.
        NoLimitError: its output is not of order 1 in the width.
        UnsupportedError: it couples the inputs of a batch, or covariances do not say
            all about its output.

    Example:
        ```python
        n = wl.width("n")
        params = {"W": wl.normal((n, n), fan_in=0), "b": wl.normal((n,))}
        grid = {"W": np.linspace(0.5, 3, 30), "b": np.linspace(0, 1, 30)}
        found = wl.phase_diagram(
            lambda p, h: jnp.tanh(h) @ p["W"] + p["b"], params, grid
        )
        found.plot("edge_of_chaos.png")
        ```

    References:
        Poole et al. (2016), https://arxiv.org/abs/1606.05340; Schoenholz et al.
        (2017), https://arxiv.org/abs/1611.01232, equations 3 to 9 and 14; residual
        networks: Yang and Schoenholz (2017), https://arxiv.org/abs/1712.08969.
    """
    if not callable(f):
        raise InputError(f"The layer should be a function f(params, h), got {f!r}.")
    names, values = _grid(stds)
    scanned = _leaves(params, names)
    _in_range(variance, correlation)
    positions, width = _state(shape, params)
    layer = Repeated(f, params, positions, width, scanned)
    a, b = values
    grid = np.stack([x.ravel() for x in np.meshgrid(a, b, indexing="ij")], axis=1)
    with enable_x64():
        maps, start = Maps(LayerMap(layer)), (float(variance), float(correlation))
        trials = np.linspace(0, len(grid) - 1, _TRIALS).round().astype(int)
        _check_closed(layer, Points(maps, grid[trials], *start))
        found = ends(Points(maps, grid, *start))
    return _diagram(names, values, found)


def _diagram(names: Any, values: Any, found: Ends) -> PhaseDiagram:
    a, b = ("+".join(part) for part in names)
    sizes = tuple(len(v) for v in values)
    return PhaseDiagram(
        names=(a, b),
        stds=values,
        variance=found.variance.reshape(sizes),
        correlation=found.correlation.reshape(sizes),
        chi=found.chi.reshape(sizes),
        gradient=found.gradient.reshape(sizes),
        variance_length=_length(found.own).reshape(sizes),
        correlation_length=_length(found.cross).reshape(sizes),
    )


def _length(rate: np.ndarray) -> np.ndarray:
    """-1/log of a rate; infinite from 1 on, to the accuracy of rates."""
    slow = rate >= 1 - 1e-7
    with np.errstate(divide="ignore"):
        length = -1 / np.log(np.where(slow | np.isnan(rate), 0.5, rate))
    return np.where(np.isnan(rate), np.nan, np.where(slow, np.inf, length))


def _check_closed(layer: Repeated, trials: Points) -> None:
    apart = closes(Maps(LayerMap(layer, 2)), trials)
    if not apart < _CLOSED:
        raise UnsupportedError(
            "Covariances do not say all about the output of this layer: those after "
            "two layers are not those of one applied twice, by a relative "
            f"{apart:.1g}. Let it end where its output is Gaussian, at a product with "
            "weights: tanh(h) @ W + b, or h + tanh(h) @ W, rather than h + tanh(h @ W)."
        )


# Arguments ----------------------------------------------------------------------------


def _grid(
    stds: Any,
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], tuple[np.ndarray, np.ndarray]]:
    if not isinstance(stds, Mapping) or len(stds) != 2:
        raise InputError(
            "`stds` should have two entries, from the name of a parameter to its "
            f"standard deviations, as in {{'W': [1, 2], 'b': [0, 1]}}; got {stds!r}."
        )
    keys = [(k,) if isinstance(k, str) else tuple(k) for k in stds]
    first, second = keys
    if set(first) & set(second):
        raise InputError(f"Both entries of `stds` name {set(first) & set(second)}.")
    a, b = (_axis(k, v) for k, v in zip(keys, stds.values(), strict=True))
    return (first, second), (a, b)


def _axis(names: tuple[str, ...], given: Any) -> np.ndarray:
    what = f"The standard deviations of `{'+'.join(names)}`"
    if not is_concrete(given):
        raise InputError(f"{what} should be numbers, not traced by JAX.")
    try:
        values = np.array(given, float)
    except (TypeError, ValueError):
        raise InputError(f"{what} should be numbers, got {given!r}.") from None
    if values.ndim != 1 or not values.size:
        raise InputError(
            f"{what} should lie along one axis, got an array of shape {values.shape}."
        )
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise InputError(
            f"{what} should be finite and not negative, got {values[bad][0]} at "
            f"position {np.flatnonzero(bad)[0]}."
        )
    if np.any(np.diff(values) <= 0):
        raise InputError(f"{what} should increase.")
    values.setflags(write=False)
    return values


def _leaves(
    params: Any, names: tuple[tuple[str, ...], tuple[str, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of the leaves that names stand for."""
    paths, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda p: isinstance(p, Normal | Constant)
    )
    known = {path_name(path): i for i, (path, _) in enumerate(paths)}
    random = [n for n, i in known.items() if isinstance(paths[i][1], Normal)]
    for name in (*names[0], *names[1]):
        if name not in random:
            raise InputError(
                f"`stds` names {name!r}, which is not a random parameter of the layer; "
                f"these are: {', '.join(random) or 'none'}."
            )
    first, second = (tuple(known[n] for n in part) for part in names)
    return first, second


def _in_range(variance: Any, correlation: Any) -> None:
    if not (np.ndim(variance) == 0 and 0 < variance < np.inf):
        raise InputError(f"variance should be positive and finite, got {variance!r}.")
    if not (np.ndim(correlation) == 0 and 0 <= correlation < 1):
        raise InputError(
            f"correlation should be at least 0 and below 1, got {correlation!r}."
        )


def _state(shape: Any, params: Any) -> tuple[tuple[int, ...], Width]:
    widths = widths_in(params)
    if shape is None:
        if len(widths) != 1:
            raise InputError(
                f"The layer has the widths {', '.join(widths) or '(none)'}: give the "
                "shape of its state, as in `shape=(n,)`."
            )
        return (), next(iter(widths.values()))
    given = shape if isinstance(shape, tuple | list) else (shape,)
    *index, width = given or (None,)
    whole = all(isinstance(s, int) and s > 0 for s in index)
    if not isinstance(width, Width) or not whole:
        raise InputError(
            "`shape` should be sizes and, last, a width, as in `(8, 8, n)`; got "
            f"{shape!r}."
        )
    return tuple(index), width
