"""Kernels tile by tile: of any kernel function, within memory, on several devices."""

import functools
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import InputError
from ._jax import is_concrete
from ._progress import Progress, check_progress, reported
from .tiles import (
    Cut,
    Mirror,
    Parts,
    Whole,
    check_memory,
    cut_inputs,
    cut_kernels,
    is_kernel,
    uncut,
)

_EVERYTHING = ("pairs", "rows", "cols", "flag", "number")


def batch(
    kernel_fn: Callable[..., Any],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    *,
    progress: bool | Progress = False,
) -> Callable[..., Any]:
    """Compute a kernel in tiles of `batch_size` x `batch_size` pairs of inputs.

    The result is that of `kernel_fn`, of which one tile at a time is under way on each
    device. Any numbers of inputs will do: tiles at the ends are smaller, and there are
    at most four shapes, each compiled once. `kernel_fn` need not be jitted.

    Where `x2` is None the kernel is symmetric, and only the tiles on and above the
    diagonal are computed; below it stand their mirror images. Which of the axes after
    (N1, N2) are pairs of positions a `Kernel` says; an array shows it by the tiles on
    the diagonal, which are symmetric themselves. Where they are not, or do not tell one
    layout from another, and inside `jax.jit`, all tiles are computed.

    Args:
        kernel_fn: `kernel_fn(x1, x2, *args, **kwargs)`, of a limit, of a finite
            network or averaged over several; or `kernel_fn(kernel)` of a layer. It
            gives an array (N1, N2, ...), a `Kernel`, or a pytree of them. Bound methods
            of `wl.limit` are called as they are, others are jitted: their arguments
            that are no arrays are then static.
        batch_size: inputs along the side of a tile; 0 is all of them, or equal parts
            for several devices.
        device_count: how many local devices share the tiles; -1 is all, and 0 the one
            that JAX would use.
        store_on_device: keep the result on the (first) device; else in NumPy arrays on
            the host.
        progress: show a bar; or a function called as `progress(done, all)` after every
            tile.

    Returns:
        A function of the arguments of `kernel_fn`. Positional ones after `x2` are the
        same for all tiles. Of keyword arguments, a pair of arrays (`pattern`) has a
        row for each input of `x1` and of `x2`; `rng`, a key or a pair, is split, so
        that every batch of inputs has its own; `params` and others are the same for
        all tiles.

    Raises:
        InputError: a size that is none; more devices than there are; a result that
            does not fit in memory, before it is computed; inputs that interact.
        ShapeMismatchError: arrays of one batch with other numbers of rows.
        UnsupportedError: `diagonal_batch=False`: tiles hold a part of `cov1` only.

    Example:
        ```python
        kernel_fn = wl.batch(net.ntk, batch_size=200, store_on_device=False)
        kernel_fn(x_train), kernel_fn(x_test, x_train)
        ```
    """
    if not callable(kernel_fn):
        raise InputError(f"`batch` takes a kernel function, got {kernel_fn!r}.")
    size = _whole_number("batch_size", batch_size, 0)
    count = _whole_number("device_count", device_count, -1)
    check_progress(progress)
    plain, owner = _computed(kernel_fn), _owner(kernel_fn)
    jitted = jax.jit(plain)

    # The attributes of the function go with it: a layer's requirements are such.
    @functools.wraps(kernel_fn)
    def batched(x1: Any, x2: Any = None, *args: Any, **kwargs: Any) -> Any:
        devices = _devices(count)
        cut, layered = _cut(x1, x2, args, kwargs, size > 0 or len(devices) > 1)
        cut.into(_step(cut, size, len(devices)))
        compute = jitted
        if owner is not None and not layered:
            compute = plain
            if not cut.is_one:
                _check_apart(owner, x1, x2)
        rest = Parts.of((args, cut.fixed))
        _check_static(rest)
        run = _Run(compute, cut, rest, devices, store_on_device, _asked(args, kwargs))
        with reported(progress, "tiles") as report:
            return run(report)

    return batched


class _Run:
    """One call: tiles, one under way on each device, and where they go."""

    def __init__(
        self,
        compute: Callable[..., Parts],
        cut: Cut,
        rest: Parts,
        devices: Sequence[Any],
        store_on_device: bool,
        asked: str,
    ) -> None:
        self._compute, self._cut, self._asked = compute, cut, asked
        first = cut.tile((0, 0))
        # Inside a trace even a new array is a tracer: nothing can be looked at.
        self._concrete = all(
            map(is_concrete, jax.tree.leaves((first, rest, jnp.zeros(()))))
        )
        self._devices = devices if self._concrete else [None]
        self._on_host = self._concrete and not store_on_device
        self._rest = [
            rest if d is None else jax.device_put(rest, d) for d in self._devices
        ]

    def __call__(self, report: Progress) -> Any:
        cut = self._cut
        shapes = jax.eval_shape(self._compute, *self._arguments((0, 0)))
        if cut.is_one:
            return self._one(shapes, report)
        tile = cut.rows[0].stop, cut.cols[0].stop
        whole = Whole(shapes, tile, cut.size, self._asked)
        self._check_memory(whole.bytes, whole.tile_bytes, str(whole))
        whole.allocate(self._on_host, self._devices[0])
        if cut.alone:
            self._fill_square(whole, Mirror(shapes, whole.pairs), report)
        else:
            self._fill(whole, report)
        return whole.result()

    def _one(self, shapes: Parts, report: Progress) -> Any:
        size = sum(a.size * a.dtype.itemsize for a in shapes.arrays)
        named = ", ".join(f"{a.shape} {a.dtype.name}" for a in shapes.arrays)
        self._check_memory(size, 0, named)
        answer = self._compute(*self._arguments((0, 0)))
        if self._concrete:
            jax.block_until_ready(answer.arrays)
        report(1, 1)
        if self._on_host:
            answer = jax.tree.map(np.asarray, answer)
        return answer.value

    def _fill(self, whole: Whole, report: Progress) -> None:
        cut = self._cut
        tiles = [(a, b) for a in range(len(cut.rows)) for b in range(len(cut.cols))]
        for done, (at, answer) in enumerate(self._answers(tiles), 1):
            a, b = at
            wanted = {"rows": b == 0, "cols": a == 0, "flag": a == b}
            kinds = {"pairs"} | {kind for kind, here in wanted.items() if here}
            if a == b == 0:
                kinds.add("number")
            whole.put(answer, cut.rows[a], cut.cols[b], kinds)
            report(done, len(tiles))

    def _fill_square(self, whole: Whole, mirror: Mirror, report: Progress) -> None:
        """Tiles on the diagonal first: they show whether the others are mirrored."""
        cut, count = self._cut, len(self._cut.rows)
        diagonal = [(a, a) for a in range(count)]
        above = [(a, b) for a in range(count) for b in range(a + 1, count)]
        looked = self._concrete and cut.is_symmetric
        total = len(diagonal) + len(above) * (1 if looked else 2)
        for done, ((a, _), answer) in enumerate(self._answers(diagonal), 1):
            if looked:
                mirror.see(answer)
            whole.put(answer, cut.rows[a], cut.cols[a], _EVERYTHING)
            report(done, total)
        axes = mirror.axes if looked else None
        tiles = above
        if axes is None:
            tiles = above + [(b, a) for a, b in above]
        total = count + len(tiles)
        for done, ((a, b), answer) in enumerate(self._answers(tiles), count + 1):
            whole.put(answer, cut.rows[a], cut.cols[b], ("pairs",))
            if axes is not None:
                whole.put(answer, cut.cols[b], cut.rows[a], ("pairs",), axes)
            report(done, total)

    def _answers(
        self, tiles: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Parts]]:
        """Results in the order of the tiles; while one is stored, others are made."""
        under_way: deque[tuple[tuple[int, int], Parts]] = deque()
        for number, at in enumerate(tiles):
            under_way.append((at, self._compute(*self._arguments(at, number))))
            # Dispatch is asynchronous: without a wait, all tiles would be in memory.
            if len(under_way) > len(self._devices):
                yield self._ready(under_way.popleft())
        while under_way:
            yield self._ready(under_way.popleft())

    def _ready(self, item: tuple[tuple[int, int], Parts]) -> Any:
        if self._concrete:
            jax.block_until_ready(item[1].arrays)
        return item

    def _arguments(self, at: tuple[int, int], number: int = 0) -> tuple[Any, ...]:
        inputs, kwargs = self._cut.tile(at)
        which = number % len(self._devices)
        device, parts = self._devices[which], (Parts.of(inputs), Parts.of(kwargs))
        if device is not None:
            parts = jax.device_put(parts, device)
        return *parts, self._rest[which]

    def _check_memory(self, whole: int, tile: int, shapes: str) -> None:
        if self._concrete:
            (default,) = jnp.zeros(()).devices()
            devices = [d or default for d in self._devices]
            check_memory(whole, tile, devices, self._on_host, shapes)


def _cut(
    x1: Any, x2: Any, args: Sequence[Any], kwargs: dict[str, Any], tiled: bool
) -> tuple[Cut, bool]:
    """What is cut, and whether it is the kernels of layers before."""
    leaves = jax.tree.leaves(x1, is_leaf=is_kernel)
    if not tiled:
        layered = any(map(is_kernel, leaves))
        bare = layered and not args and not jax.tree.leaves(x2)
        return uncut((x1,) if bare else (x1, x2), kwargs), layered
    if not any(map(is_kernel, leaves)):
        return cut_inputs(x1, x2, kwargs), False
    if not all(map(is_kernel, leaves)) or jax.tree.leaves(x2):
        raise InputError(
            "A layer takes the kernels of the one before, and no inputs beside them: "
            "give a `Kernel` or a pytree of them as `x1`, and `x2=None`."
        )
    return cut_kernels(x1, bool(args), kwargs), True


def _step(cut: Cut, size: int, devices: int) -> tuple[int, int]:
    """The sides of tiles."""
    n1, n2 = cut.size
    if size:
        return min(size, n1), min(size, n2)
    rows = -(-n1 // devices)
    # Square tiles where the matrix is: `x1_is_x2`, and the mirror, need a diagonal.
    return rows, rows if n1 == n2 else n2


def _computed(kernel_fn: Callable[..., Any]) -> Callable[..., Parts]:
    """The function of one tile, from parts to parts."""

    def compute(inputs: Parts, kwargs: Parts, rest: Parts) -> Parts:
        args, fixed = rest.value
        return Parts.of(kernel_fn(*inputs.value, *args, **kwargs.value, **fixed))

    return compute


def _owner(kernel_fn: Callable[..., Any]) -> Any | None:
    """The `Limit` of which the function is a method, or what is called like one.

    It compiles its kernels itself, with options that only the outermost program can
    have, and checks data that are not traced; and it knows whether inputs interact.
    """
    while isinstance(kernel_fn, functools.partial):
        kernel_fn = kernel_fn.func
    owner = getattr(kernel_fn, "__self__", kernel_fn)
    return owner if hasattr(owner, "coupled") else None


def _check_apart(owner: Any, *batches: Any) -> None:
    if any(x is not None and owner.coupled(x) for x in batches):
        raise InputError(
            "The inputs of a batch interact in this network, so that its kernel is not "
            "put together from tiles: call it without `batch`, or with a `batch_size` "
            "of at least the number of inputs."
        )


def _check_static(rest: Parts) -> None:
    for leaf in rest.fixed:
        try:
            hash(leaf)
        except TypeError:
            raise InputError(
                f"The argument {leaf!r} is no array and cannot be hashed, so that "
                "nothing compiled could be used again: bind it with "
                "`functools.partial(kernel_fn, ...)`."
            ) from None


def _asked(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """What an array without a name is: the one thing that was asked for."""
    names = [g for g in (kwargs.get("get"), *args[:1]) if isinstance(g, str)]
    return names[0].lower() if names else "nngp"


def _whole_number(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InputError(
            f"`{name}` should be a whole number of at least {least}, got {value!r}."
        )
    return number


def _devices(count: int) -> list[Any]:
    """Where tiles are computed; [None] leaves it to JAX."""
    local = jax.local_devices()
    if count > len(local):
        raise InputError(
            f"`device_count={count}`, but this process has {len(local)} devices: "
            f"{', '.join(map(str, local))}. Give -1 to use all."
        )
    chosen = local if count == -1 else local[:count]
    return list(chosen) if len(chosen) > 1 else [None]
