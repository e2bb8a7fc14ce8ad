"""The front door: networks and their limits."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import finite
from ._errors import (
    InputError,
    InvalidProgramError,
    NoLimitError,
    ShapeMismatchError,
    UnsupportedError,
)
from ._jax import any_rank, enable_x64, is_concrete, small_as_numpy
from ._kernel import check_names, returned, wanted
from ._networks import (
    Networks,
    diverges,
    is_mean,
    key_of,
    named_inputs,
    struct_of,
    with_rows,
)
from ._progress import Progress, check_progress, reported
from ._sampled import MAX_SAMPLES, SAMPLES, SampledLimit, estimates
from .asymptotics import PAIRS, Engine, NeedsDraws, Question, Side
from .gaussian import Estimate
from .kernels import (
    BlockKernel,
    Inputs,
    PairKernel,
    Plan,
    Quantities,
    averaged,
    forwards,
    mean_of,
)
from .program import TensorProgram
from .report import (
    Explanation,
    Formula,
    GradientReport,
    KernelPlan,
    explain,
    formula,
    gradient_report,
    kernel_plan,
)
from .trace import Constant, Network, Normal, Untied, path_name

# A mean below this part of the deviation is rounding.
_ROUNDING = 1e-9


def limit(
    f: Callable[..., Any],
    params: Any,
    *,
    trace_axes: Sequence[int] = (-1,),
    parameterization: str | None = None,
) -> "Limit":
    """Take the infinite-width limit of a network.

    Args:
        f: the network, `f(params, x)`: an ordinary JAX function, batched over axis 0 of
            `x`, that returns one array (N, *I, O) or (N,).
        params: a pytree of `wl.normal` and `wl.constant` declarations; other arrays in
            it are passed to `f` as they are.
        trace_axes: axes of the output over which the kernel is averaged.
        parameterization: sets that of all parameters that have none; see `wl.normal`.

    Returns:
        The limit; nothing is computed before it is asked.

    Raises:
        InputError: `f` is not a function, or `params` declares nothing random.

    Example:
        ```python
        n = wl.width("n")
        params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
        net = wl.limit(lambda p, x: jnp.tanh(x @ p["U"]) @ p["v"] / jnp.sqrt(n), params)
        net.nngp(jnp.ones((2, 3)))
        ```
    """
    if not callable(f):
        raise InputError(
            f"`wl.limit(f, params)` takes a function f(params, x), got {f!r}."
        )
    if parameterization is not None:
        params = jax.tree.map(
            lambda p: (
                dataclasses.replace(p, parameterization=parameterization)
                if isinstance(p, Normal) and p.parameterization is None
                else p
            ),
            params,
            is_leaf=_declared,
        )
    _check_params(params)
    if isinstance(trace_axes, int):
        trace_axes = (trace_axes,)
    return Limit(f, params, tuple(trace_axes))


def _declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)


def _check_params(params: Any) -> None:
    paths, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
    for path, p in paths:
        if (
            not _declared(p)
            and not isinstance(p, int | float)
            and not hasattr(p, "dtype")
        ):
            raise InputError(
                f"The parameter `{path_name(path)}` is {p!r}: declare it with "
                "`wl.normal` or `wl.constant`, or give an array."
            )
    if not any(isinstance(p, Normal) for _, p in paths):
        raise InputError(
            "No parameter is random: declare them with `wl.normal` and `wl.width`, as "
            "in `n = wl.width('n'); params = {'W': wl.normal((784, n))}`."
        )


class Kernels(NamedTuple):
    """Both kernels of a network, each (N1, N2, *I, *I'); see `Limit.kernels`."""

    nngp: jax.Array
    ntk: jax.Array


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """Signal propagation at one tap h of width n_h and index shape I.

    Attributes:
        forward: E[Z^h Z^h'], the limit of (1/n_h) sum h h', shape (N, N, *I, *I').
        gradient: E[Z^dh Z^dh'] of dh = sqrt(n_h) df/dh, the limit of the sum of
            df/dh df'/dh', of the same shape. All uses of h count; of a tap that puts
            other quantities side by side, or reads some of their positions, all uses
            of those.

    Both are arrays, or estimates of them where `Limit.estimate` gives them.
    """

    forward: Any
    gradient: Any


class _How:
    """How kernels are computed: in which tiles, and who is told.

    Raises:
        InputError: as for `Limit.kernels`.
    """

    def __init__(self, block: Any = None, progress: Any = False) -> None:
        whole = isinstance(block, int | np.integer) and not isinstance(block, bool)
        if block is not None and not (whole and block > 0):
            raise InputError(
                f"`block` should be a whole number of inputs above zero, got {block!r}."
            )
        check_progress(progress)
        self.block = None if block is None else int(block)
        self.progress = progress


class Limit:
    """A network and its infinite-width limit. Made by `wl.limit`."""

    def __init__(
        self, f: Callable[..., Any], params: Any, trace_axes: tuple[int, ...]
    ) -> None:
        self.f, self.params, self.trace_axes = f, params, trace_axes
        self._networks = Networks(f, params, trace_axes)
        self._sampled = SampledLimit(self._networks, trace_axes)
        self._kernels: dict[Any, BlockKernel] = {}
        self._means: dict[Any, Any] = {}

    # Kernels --------------------------------------------------------------------------

    def nngp(
        self,
        x1: Any,
        x2: Any | None = None,
        *,
        diagonal: bool = False,
        block: int | None = None,
        progress: bool | Progress = False,
    ) -> jax.Array:
        """The covariance of the outputs in the limit.

        That of an output with a wide axis is the mean product of its coordinates: the
        covariance of a readout of it.

        Differentiable in `x1`, `x2` and in every array of the parameters. Work that
        depends on one input is done once for it; half the pairs when `x2` is None.
        Where an expectation has no formula it is a mean over 2^13 quasi-random points,
        the same at every call: `estimate` tells the error.

        Args:
            x1: N1 inputs (an array, or a pytree of arrays with one leading axis).
            x2: N2 inputs, perhaps of other lengths; `x1` when None. A network whose
                inputs interact takes each of `x1` and `x2` as one batch.
            diagonal: only of every input of `x1` with itself.
            block: as for `kernels`.
            progress: as for `kernels`.

        Returns:
            Shape (N1, N2, *I, *I'), averaged over the output axis: see `trace_axes`;
            (N1, *I, *I') with `diagonal`.
            Zeros, with a warning, when the output vanishes in the limit.

        Raises:
            NoLimitError: the output diverges; the message has its power of n. Or an
                expectation does not exist, as in normalising equal inputs.
            InputError: data that are not finite, empty, or out of range; kernels that
                do not fit in memory.
            ShapeMismatchError: `f` cannot take inputs of this shape.
        """
        how = _How(block, progress)
        if not diagonal:
            return self._compute(x1, x2, "nngp", how=how)["nngp"]
        if x2 is not None:
            raise InputError("`diagonal` is of the inputs of `x1`; leave `x2` out.")
        return self._compute(x1, None, "nngp", how=how, diagonal=True)["nngp"]

    def ntk(
        self,
        x1: Any,
        x2: Any | None = None,
        *,
        by_param: bool = False,
        block: int | None = None,
        progress: bool | Progress = False,
    ) -> Any:
        """The neural tangent kernel in the limit.

        The limit of the sum over trained parameters of lr <df/dtheta, df'/dtheta>, with
        respect to the arrays as `f` receives them, or to the variables underneath that
        a parameterisation has: see `wl.normal`. Differentiable like `nngp`.

        The theorems need polynomially bounded derivatives. That of batch normalisation
        without epsilon is infinite at zero: the kernel is what they would give. Then
        `explain(x).hypotheses` says so, and `check(x, ntk=True)` compares it with real
        networks.

        Args:
            x1: N1 inputs, as for `nngp`.
            x2: N2 inputs, or None for `x1`.
            by_param: give the part of every trained parameter, by name.
            block: as for `kernels`.
            progress: as for `kernels`.

        Returns:
            Shape (N1, N2, *I, *I'), averaged over the output axis: see `trace_axes`;
            or a dict of such arrays.

        Raises:
            NoLimitError: the output or a part of the kernel diverges; or an expectation
                does not exist, as in normalising 3 inputs or fewer without epsilon.
            InputError: nothing is trained, or as for `nngp`.
            UnsupportedError: a function has no derivative among the known operations;
                a trained parameter of finite shape does not enter linearly.

        References:
            Yang (2020), https://arxiv.org/abs/2006.14548.
        """
        how = _How(block, progress)
        if not by_param:
            return self._compute(x1, x2, "ntk", how=how)["ntk"]
        parts = self._compute(x1, x2, "parts", how=how)
        return {key.removeprefix("ntk:"): k for key, k in parts.items()}

    def kernels(
        self,
        x1: Any,
        x2: Any | None = None,
        *,
        block: int | None = None,
        progress: bool | Progress = False,
    ) -> Kernels:
        """Both kernels in one pass: `.nngp` and `.ntk`, as the methods give them.

        They are computed in tiles of pairs, a few at once: the memory that is taken
        beside the results is bounded, however many inputs there are. `plan` says what
        it is. Where inputs of a batch interact, something is sampled, or arguments are
        traced by JAX, all of it is one program instead.

        Args:
            x1: N1 inputs, as for `nngp`.
            x2: N2 inputs, or None for `x1`.
            block: the most inputs along the side of a tile; chosen for this network
                and these inputs if None. The memory for tiles grows with its square.
            progress: show a bar; or a function called as `progress(done, all)` after
                each tile. Without tiles it is never called.

        Raises:
            InputError: the results, or the tiles, do not fit in memory: the message has
                the numbers; or as for `nngp`.
            NoLimitError: as for `nngp` and `ntk`.
        """
        how = _How(block, progress)
        return Kernels(**self._compute(x1, x2, "nngp", "ntk", how=how))

    @any_rank()
    def _compute(
        self,
        x1: Any,
        x2: Any | None,
        *what: str,
        how: _How | None = None,
        diagonal: bool = False,
        precise: bool = False,
    ) -> dict[str, Any]:
        """Kernels of two data sets, by name; or of each input with itself.

        Where something is drawn, `precise` is the mean of all randomisations.
        """
        x1, x2, batch = self._checked(x1, x2, what)
        dtype = _dtype(x1)
        x1, x2 = _cast(x1, dtype), None if x2 is None else _cast(x2, dtype)
        by_formulas = batch and all(map(is_concrete, jax.tree.leaves((x1, x2))))
        if not by_formulas:
            self._sampled.check_exists(x1, x2, dtype, what)
        try:
            if not batch:
                found = self._by_pairs(x1, x2, what, how or _How(), diagonal)
                return _checked_numbers(found)
            question, inputs = self._sampled.question(x1, x2, dtype, what)
            found = question.formulas(inputs)
        except NeedsDraws:
            if by_formulas:
                self._sampled.check_exists(x1, x2, dtype, what)
            take = self._sampled.means if precise else self._sampled.kernels
            found = take(x1, x2, dtype, what)
        found = _checked_numbers(found)
        return jax.tree.map(_equal_inputs, found) if diagonal else found

    def _checked(
        self, x1: Any, x2: Any | None, what: Collection[str]
    ) -> tuple[Any, Any | None, bool]:
        """Data that the network can take, and whether a batch is one input."""
        x1 = self._inputs(x1, "x1")
        if x2 is not None:
            _check_axes(x1, x2)
            x2 = self._inputs(x2, "x2")
        batch = self._networks.is_coupled(x1) or (
            x2 is not None and self._networks.is_coupled(x2)
        )
        one = struct_of(x1)
        network = self._networks.limit(one, batch)
        if "nngp" in what or not is_mean(network.output):
            self._check_order(network)
        if not batch:
            self._check_data(one, x1)
        self._networks.asked(one, batch, frozenset(what))
        if x2 is not None:
            self._of_second(one, struct_of(x2), batch, frozenset(what))
            if not batch:
                self._check_data(struct_of(x2), x2)
        return x1, x2, batch

    def _by_pairs(
        self,
        x1: Any,
        x2: Any | None,
        what: Sequence[str],
        how: _How,
        diagonal: bool,
    ) -> dict[str, Any]:
        """Kernels of inputs that do not interact, pair by pair, by formulas."""
        kernel, shared = self._block_kernel(x1, x2, what)
        if diagonal:
            return forwards(kernel.diagonal, shared, x1)
        with reported(how.progress, "kernels") as progress:
            options = {"block": how.block, "progress": progress}
            return forwards(functools.partial(kernel, **options), shared, x1, x2)

    def _block_kernel(
        self, x1: Any, x2: Any | None, what: Sequence[str]
    ) -> tuple[BlockKernel, Callable[[], dict[str, Any]]]:
        """The kernels of pairs of such inputs, and what makes the arrays they share."""
        one, two = struct_of(x1), struct_of(x1 if x2 is None else x2)
        first, second = (
            self._networks.asked(x, False, frozenset(what)) for x in (one, two)
        )
        dtype = _dtype(x1)
        shared = functools.partial(self._networks.shared, dtype, what)
        keys = [key_of(with_rows(s, 1)) for s in (one, two)]
        key = (*keys, str(dtype), frozenset(what))
        if key not in self._kernels:
            kernel = PairKernel(first, second, self.trace_axes, False)
            self._kernels[key] = _block_kernel(kernel, dtype)
        return self._kernels[key], shared

    def _of_second(
        self, one: Any, two: Any, batch: bool, what: frozenset[str]
    ) -> Quantities:
        """What is asked for inputs of the shape of `x2`."""
        try:
            return self._networks.asked(two, batch, what)
        except ShapeMismatchError as error:
            raise ShapeMismatchError(
                f"`x2` has shape {_shapes(two)}, which the network cannot take; `x1` "
                f"has shape {_shapes(one)}. {error}"
            ) from error

    @any_rank()
    def mean(self, x: Any) -> jax.Array:
        """The mean of the Gaussian process: what the output converges to on average.

        Zero for a readout with weights that stand nowhere else in the network.

        Args:
            x: N inputs.

        Returns:
            An array of the shape of the output; a wide axis has size 1. For an output
            that converges to a constant, that constant.

        Raises:
            NoLimitError: the output diverges.
        """
        x = self._inputs(x, "x")
        batch, dtype = self._networks.is_coupled(x), _dtype(x)
        network = self._networks.limit(struct_of(x), batch)
        if network.output.power > 0:
            raise NoLimitError(diverges("The output", network.output))
        if not batch:
            self._check_data(struct_of(x), x)
        shared, x = self._networks.shared(dtype), _cast(x, dtype)
        key = (key_of(x if batch else with_rows(struct_of(x), 1)), batch, str(dtype))
        if key not in self._means:

            def one(shared: Any, row: Any) -> Any:
                given = named_inputs(row, whole=batch)
                side = Side(network.program, {**shared, **given})
                engine = Engine([side], dtype=dtype, sampling=PAIRS)
                return mean_of(engine, network.output)

            def each(shared: Any, rows: Any) -> Any:
                return jax.lax.map(lambda row: one(shared, row)[0], rows)

            self._means[key] = jax.jit(one if batch else each)
        try:
            return self._means[key](shared, x)
        except NeedsDraws:
            return self._sampled.mean(x, dtype)

    def estimate(
        self,
        x1: Any,
        x2: Any | None = None,
        get: str | Iterable[str] = "nngp",
        *,
        samples: int = SAMPLES,
        rtol: float | None = None,
        route: str = "auto",
        output: int | tuple[int, ...] = (),
        key: Any = None,
        progress: Any = None,
    ) -> Any:
        """Kernels or statistics with an error for every entry, in double precision.

        Expectations that have a formula are computed by it. Of the others the Gaussian
        vectors that they need are drawn, jointly for all inputs, as quasi-random
        samples; whatever is independent of those keeps its formula, while there are at
        most 2000 of them: of deep recurrences everything is drawn. Samples are drawn in
        16 independent randomisations, whose spread is the standard error.

        Args:
            x1: N1 inputs, as for `nngp`.
            x2: N2 inputs, or None for `x1`.
            get: "nngp" or "ntk"; or a tuple of them, for both from the same samples.
                Or "statistics", those of `net.statistics(x1)`.
            samples: in every randomisation, a power of two.
            rtol: the error that is wanted, relative to the largest entry: `samples` are
                doubled until it is reached, up to 2^18.
            route: "auto", or "samples" to draw everything that is random. The latter
                does without formulas, and checks them. For deep recurrences, where
                formulas are many, it is the faster one at a larger error.
            output: the position of the output that is differentiated, as for
                `statistics`.
            key: a JAX random key of the randomisations; fixed if None.
            progress: called as `progress(done, all)` after each randomisation.

        Returns:
            An `Estimate`: `.value`, `.error` (99 % half-width), `.stderr`, `.route`,
            the arrays of shape (N1, N2, *I, *I'). A named tuple of them for a tuple
            `get`; for "statistics" a dict of `Statistics` by tap, whose `.forward`
            and `.gradient` are estimates.

        Raises:
            InputError: as for `nngp` and `statistics`; an argument out of its range.
            UnsupportedError: the samples do not fit into memory.

        Warns:
            UserWarning: `rtol` was not reached; the message says what was.

        References:
            Yang (2019), https://arxiv.org/abs/1902.04760, theorem 4;
            Owen (1997), on randomised quasi-Monte Carlo.
        """
        names = wanted(get)
        check_names(names, ("nngp", "ntk", "statistics"))
        assert names is not None
        _check_sampling(samples, rtol, route)
        seed = [] if key is None else np.ravel(jax.random.key_data(key)).tolist()

        def found(*what: str) -> dict[str, Estimate]:
            with enable_x64():
                # Of one input alone the rest is not needed: all are one program here.
                data = self._checked(x1, x2, {"nngp"} & set(what))[:2]
                dtype = np.dtype(float)
                first, second = (None if x is None else _cast(x, dtype) for x in data)
                question, inputs = self._sampled.question(first, second, dtype, what)
                return estimates(question, inputs, samples, rtol, seed, progress, route)

        if "statistics" not in names:
            return returned(found(*names), get, "Estimates")
        if len(names) > 1 or x2 is not None:
            raise InputError(
                "`get='statistics'` is of one set of inputs, and stands alone: leave "
                f"{'`x2`' if len(names) == 1 else 'the other names'} out."
            )
        network = self._tapped(self._inputs(x1, "x1"))
        at, numbers = self._position(network, output), found("gradients", "taps")
        gradients = {
            name: _each(numbers[f"gradient:{name}"], lambda k: _at_output(k, at))
            for name in network.taps
        }
        return {k: Statistics(numbers[f"tap:{k}"], g) for k, g in gradients.items()}

    def _mean_beside(self, x: Any, covariance: Any) -> dict[str, Any]:
        """The mean of the output for `check`, unless it is zero beside rounding."""
        mean, size = self.mean(x), jnp.sqrt(jnp.max(covariance))
        return {"output:mean": mean} if jnp.abs(mean).max() > _ROUNDING * size else {}

    def coupled(self, x: Any) -> bool:
        """Whether inputs of a batch interact; each data set is then one batch."""
        return self._networks.is_coupled(self._inputs(x, "x"))

    def forward(self, x: Any) -> dict[str, jax.Array]:
        """E[Z^h Z^h'] at every tap, and the kernel under "output".

        Returns:
            Arrays of shape (N, N, *I, *I'), by name.
        """
        return self._forward(self._inputs(x, "x"), "nngp", "taps")

    def _tapped(self, x: Any) -> Network:
        """The network, whose taps have a limit."""
        network = self._limit(x)
        for name, tap in network.taps.items():
            if tap.power > 0:
                raise NoLimitError(diverges(f"The tap `{name}`", tap))
        return network

    def _forward(
        self, x: Any, *what: str, precise: bool = False
    ) -> dict[str, jax.Array]:
        self._tapped(x)
        found = self._compute(x, None, *what, precise=precise)
        output = {"output": found.pop("nngp")} if "nngp" in what else {}
        return output | {key.removeprefix("tap:"): k for key, k in found.items()}

    def statistics(
        self, x: Any, *, output: int | tuple[int, ...] = ()
    ) -> dict[str, Statistics]:
        """Forward and gradient covariances at every tap: signal propagation.

        Args:
            x: N inputs; one batch where they interact.
            output: the position of the output f that is differentiated, where it has
                other axes than the inputs' and those of `trace_axes`. Gradients are
                averaged over the latter.

        Returns:
            By name of the tap: `.forward` and `.gradient`, (N, N, *I, *I'). Where
            inputs interact, an output is differentiated at its own input.

        Raises:
            InputError: there is no tap, or `output` names no position.
            NoLimitError: a tap or the output diverges.
            UnsupportedError: a function has no derivative among the known operations.

        References:
            Yang (2019), https://arxiv.org/abs/1902.04760, theorems 5 and 6;
            Schoenholz et al. (2017), https://arxiv.org/abs/1611.01232.
        """
        x = self._inputs(x, "x")
        gradients = self._gradients(x, output)
        forward = self._forward(x, "taps")
        return {k: Statistics(forward[k], g) for k, g in gradients.items()}

    def _gradients(
        self, x: Any, output: int | tuple[int, ...], precise: bool = False
    ) -> dict[str, jax.Array]:
        """The covariances of the gradients at every tap."""
        network = self._limit(x)
        at = self._position(network, output)
        found = self._compute(x, None, "gradients", precise=precise)
        return {k: _at_output(found[f"gradient:{k}"], at) for k in network.taps}

    def _position(
        self, network: Network, output: int | tuple[int, ...]
    ) -> tuple[int, ...]:
        """The position of the output that is differentiated, if there are taps."""
        if not network.taps:
            raise InputError(
                "The network has no tap: name what the statistics are wanted of, "
                "h = wl.tap('h', h)."
            )
        at = (output,) if isinstance(output, int) else tuple(output)
        shape = network.output.shape
        gone = (0, *averaged(self.trace_axes, len(shape)))
        free = [s for a, s in enumerate(shape) if a not in gone]
        if len(at) != len(free) or not all(
            -s <= i < s for i, s in zip(at, free, strict=True)
        ):
            raise InputError(
                f"`output` should be a position among the axes {tuple(free)} of the "
                f"output that are not averaged, got {output!r}."
            )
        return at

    # What it is -----------------------------------------------------------------------

    def program(self, x: Any) -> TensorProgram:
        """The tensor program for inputs of the shape of `x`; print it.

        It is that of one input, unless inputs of a batch interact.
        """
        return self._traced(self._inputs(x, "x")).program

    @any_rank()
    def plan(
        self,
        x1: Any,
        x2: Any | None = None,
        get: str | Iterable[str] = ("nngp", "ntk"),
        *,
        block: int | None = None,
    ) -> KernelPlan:
        """How the kernels of two data sets will be computed, before they are; print it.

        Args:
            x1: N1 inputs, as for `nngp`; shapes are enough (`jax.ShapeDtypeStruct`).
            x2: N2 inputs, or None for `x1`.
            get: "nngp", "ntk", or both.
            block: as for `kernels`.

        Returns:
            What is computed once for every input and once for every pair, and at which
            positions; the equal layers that are one loop; the tiles; the memory.

        Raises:
            UnsupportedError: the inputs of a batch interact, or an expectation has no
                formula: then kernels are not computed in tiles of pairs.
            InputError: as for `kernels`.
        """
        names = wanted(get)
        check_names(names, ("nngp", "ntk"))
        what, block = tuple(names or ("nngp", "ntk")), _How(block).block
        x1 = self._inputs(x1, "x1")
        x2 = None if x2 is None else self._inputs(x2, "x2")
        _check_axes(x1, x1 if x2 is None else x2)
        dtype = _dtype(x1)
        one, two = (None if x is None else _abstract(x, dtype) for x in (x1, x2))
        if any(self._networks.is_coupled(_some(x)) for x in (x1, x2) if x is not None):
            raise UnsupportedError(
                "The inputs of a batch interact in this network: their kernel is one "
                "program for the whole batch, and there are no tiles to plan."
            )
        try:
            kernel, make = self._block_kernel(one, two, what)
            shared = make()
            cut, memory = kernel.plan(shared, one, two, block)
            engine = self._engine_of_tile(shared, one, two, what, cut)
        except NeedsDraws:
            raise UnsupportedError(
                "An expectation of this network has no formula: its kernels are means "
                "over samples, and there are no tiles to plan."
            ) from None
        rows, cols = cut.rows.count, cut.cols.count
        title = f"{' and '.join(what)} of {rows} x {cols} inputs in {dtype}"
        return kernel_plan(title, engine, engine.sides[0].program, cut, memory)

    def _engine_of_tile(
        self, shared: Any, x1: Any, x2: Any | None, what: Sequence[str], cut: Plan
    ) -> Engine:
        """The engine after a block of pairs was asked of it, with no numbers."""
        x2 = x1 if x2 is None else x2
        first, second = (
            self._networks.asked(struct_of(x), False, frozenset(what)) for x in (x1, x2)
        )
        kernel = PairKernel(first, second, self.trace_axes, False)
        found: list[Engine] = []

        def ask(shared: Any, x1: Any, x2: Any) -> Any:
            sides = _inputs_of(shared, x1), _inputs_of(shared, x2)
            engine, answers = kernel.asked(
                *sides, _dtype(x1), inputs_last=cut.inputs_last
            )
            found.append(engine)
            return answers

        rows, cols = cut.rows.block, cut.cols.block
        jax.eval_shape(ask, shared, with_rows(x1, rows), with_rows(x2, cols))
        return found[0]

    def formula(self, x: Any) -> Formula:
        """The kernel recursion that the program became: text, or `.latex()`."""
        x = self._inputs(x, "x")
        return formula(self._engine(x), self._limit(x))

    def explain(self, x: Any) -> Explanation:
        """Which theorem holds and why.

        Orders in n, growth classes and ranks, how expectations are computed, and
        gradient independence: for every product with a matrix in the network and in
        its backward pass, whether its dependence on the uses of the transpose
        vanishes; if not, which term is left, why, and how much it changes. And the
        hypotheses of the theorems on gradients: `.hypotheses`.
        """
        x = self._inputs(x, "x")
        found, no_gradient = None, ""
        try:
            found = self._gradient_report(x)
        except (UnsupportedError, InvalidProgramError) as error:
            no_gradient = str(error)
        return explain(
            self._engine(x), self._limit(x), self._traced(x).program, found, no_gradient
        )

    def _gradient_report(self, x: Any) -> GradientReport:
        """What theorem 6 adds to the products of the network, for the first input."""
        batch, dtype = self._networks.is_coupled(x), _dtype(x)
        back, program = self._networks.products(struct_of(x), batch)
        inputs = _cast(jax.tree.map(lambda a: a if batch else a[:1], x), dtype)
        shared = self._networks.shared(dtype)
        side = Side(program, {**shared, **named_inputs(inputs, whole=True)})
        return gradient_report(Engine([side], dtype=dtype), back, program)

    def order(self, x: Any) -> dict[str, Fraction]:
        """The power of n of the output and of every tap, by name; 0 has a limit."""
        network = self._limit(self._inputs(x, "x"))
        return {
            "output": network.output.power,
            **{k: t.power for k, t in network.taps.items()},
        }

    def _traced(self, x: Any) -> Network:
        return self._networks.traced(struct_of(x), self._networks.is_coupled(x))

    def _limit(self, x: Any) -> Network:
        return self._networks.limit(struct_of(x), self._networks.is_coupled(x))

    @any_rank()
    def _engine(self, x: Any) -> Engine:
        """The engine after the kernel of the first two inputs was asked of it."""
        batch, dtype = self._networks.is_coupled(x), _dtype(x)
        asked = self._networks.asked(struct_of(x), batch, frozenset({"nngp"}))
        shared, x = self._networks.shared(dtype), _cast(x, dtype)
        if batch:
            rows = [named_inputs(x, whole=True)]
        else:
            count = jax.tree.leaves(x)[0].shape[0]
            picks = [
                jax.tree.map(lambda a, i=i: a[i], x) for i in (0, min(1, count - 1))
            ]
            rows = [named_inputs(p) for p in picks]
        inputs = [{**shared, **r} for r in rows]
        pairs = PairKernel(asked, asked, self.trace_axes, batch)
        question = Question([asked.program] * len(inputs), pairs.on, dtype)
        if asked.outputs["nngp"].power > 0:
            return question.engine(inputs, None)
        return question.asked_engine(inputs, SAMPLES)

    # The finite network ---------------------------------------------------------------

    def at(
        self, x: Any = None, /, *, key: Any, dtype: Any = None, **widths: int
    ) -> tuple[finite.FiniteNetwork, Any]:
        """Draw the network at finite width.

        Gradients by `theta` are those of training: where a parameter has a
        parameterisation, `theta` holds the variable that is trained underneath.

        Args:
            x: inputs of the shape that the network is for. Only untied weights need
                it, as it says how many copies there are; see `wl.untie`.
            key: a JAX random key.
            dtype: of the drawn arrays; JAX's default if None.
            **widths: the value of every width, such as `n=1024`.

        Returns:
            (f, theta), to call as `f(theta, x)`; `f.ntk(theta, x)` is its empirical
            tangent kernel, and `f.train` trains it.

        Raises:
            InputError: a width is missing, unknown or does not fit; the standard
                parameterisation is asked of a width without a base; weights are
                untied and `x` is missing.
        """
        if x is None and isinstance(self.f, Untied):
            raise InputError(
                "How many copies of its weights an untied network has depends on its "
                "inputs: draw it for some, as in net.at(x, key=key, n=1024)."
            )
        f, params = self.f, self.params
        if x is not None:
            f, params = self._networks.function(self._inputs(x, "x"))
        return finite.at(
            f, params, key, widths, dtype,
            trace_axes=self.trace_axes, one_batch=self._networks.is_one_batch,
        )  # fmt: skip

    def check(
        self,
        x: Any,
        widths: Sequence[int] = (128, 512, 2048),
        seeds: int = 16,
        key: Any = None,
        progress: Any = None,
        *,
        ntk: bool = False,
        gradients: bool = False,
        output: int | tuple[int, ...] = (),
    ) -> finite.Check:
        """Compare the limit with real networks of several widths.

        Args:
            x: inputs.
            widths: common scales; every width is its ratio times the scale.
            seeds: networks drawn at each width.
            key: a JAX random key; fixed if None.
            progress: called as `progress(done, all)`.
            ntk: compare the tangent kernel, too.
            gradients: compare the gradients at the taps, too, as `statistics` has
                them: a quantity "gradient:h" for every tap h.
            output: the position of the output that is differentiated there, as for
                `statistics`.

        Returns:
            The comparison: `.passed`, `.table()`, `.plot(path)`, printed by `str`.

        Raises:
            NoLimitError: a tap, the output or what else is asked for diverges. An
                output sqrt(n) times a mean has gradients and a tangent kernel
                nevertheless, and is left out where one of them is asked for.
            UnsupportedError: as for `ntk` and `statistics`.
            InputError: as for `statistics`; too few seeds; widths that do not fit.
        """
        x = self._inputs(x, "x")
        no_output = (ntk or gradients) and is_mean(self._limit(x).output)
        what = ("taps",) if no_output else ("nngp", "taps")
        predicted = self._forward(x, *what, precise=True)
        if not no_output and self._limit(x).output.axis is None:
            predicted |= self._mean_beside(x, predicted["output"])
        if ntk:
            predicted["ntk"] = self._compute(x, None, "ntk", precise=True)["ntk"]
        if gradients:
            found = self._gradients(x, output, precise=True)
            predicted |= {f"{finite.GRADIENT}{name}": k for name, k in found.items()}
        f, params = self._networks.function(x)
        return finite.check(
            f, params, x, predicted, widths, seeds, key, progress=progress,
            trace_axes=self.trace_axes, one_batch=self._networks.is_one_batch,
            output=(output,) if isinstance(output, int) else output,
        )  # fmt: skip

    # Data ----

    def _check_order(self, network: Network) -> None:
        out = network.output
        if out.power > 0:
            raise NoLimitError(diverges("The output", out))
        if out.power < 0:
            warnings.warn(
                f"The output vanishes like n^{out.power} with the width: its kernel is "
                "zero. Is it divided by the width once too often?",
                stacklevel=3,
            )
        elif out.kind == "fixed":
            warnings.warn(
                "The output converges to a constant: it has no readout with random "
                "weights, and its kernel is zero.",
                stacklevel=3,
            )

    def _check_data(self, struct: Any, x: Any) -> None:
        network = self._networks.limit(struct)
        if not network.checks or not all(is_concrete(a) for a in jax.tree.leaves(x)):
            return
        shared = self._networks.shared(_dtype(x))
        count = jax.tree.leaves(x)[0].shape[0]
        for i in range(count):
            row = jax.tree.map(lambda a, i=i: a[i], x)
            engine = Engine((Side(network.program, {**shared, **named_inputs(row)}),))
            for c in network.checks:
                value = np.asarray(engine.tensor_or_zeros(0, c.ref))
                if value.size and (value.min() < c.low or value.max() > c.high):
                    raise InputError(
                        f"{c.what} is {value.min()} to {value.max()} for input {i}; it "
                        f"should be in {c.low}..{c.high}."
                    )

    # Data -----------------------------------------------------------------------------

    def _inputs(self, x: Any, name: str) -> Any:
        leaves = jax.tree.leaves(x)
        if not leaves:
            raise InputError(f"`{name}` holds no array.")
        x = jax.tree.map(lambda a: a if hasattr(a, "dtype") else np.asarray(a), x)
        leaves = jax.tree.leaves(x)
        for a in leaves:
            if a.dtype == object or np.ndim(a) == 0:
                raise InputError(
                    f"`{name}` should be an array with one input a row, got "
                    f"{'a scalar' if np.ndim(a) == 0 else 'an array of objects'}."
                )
        rows = {a.shape[0] for a in leaves}
        if len(rows) > 1:
            raise ShapeMismatchError(
                f"The arrays of `{name}` have {sorted(rows)} rows; give one."
            )
        if 0 in rows:
            raise InputError(
                f"`{name}` is empty: shape {leaves[0].shape}. Give at least one input."
            )
        for a in leaves:
            floating = jnp.issubdtype(a.dtype, jnp.floating)
            known = is_concrete(a) and not isinstance(a, jax.ShapeDtypeStruct)
            if floating and known and not _has_finite_sum(a):
                bad = np.argwhere(~np.isfinite(np.asarray(a)))
                if len(bad):
                    raise InputError(
                        f"`{name}` has {len(bad)} entries that are not finite, the "
                        f"first at {tuple(int(i) for i in bad[0])}: clean the data "
                        "first."
                    )
        return x


def _block_kernel(kernel: PairKernel, dtype: Any) -> BlockKernel:
    """The kernel of two blocks of inputs, from that of two inputs."""

    def tile(
        shared: Any, x1: Any, x2: Any, one: Any, two: Any, true: Any, inputs_last: bool
    ) -> Any:
        sides = _inputs_of(shared, x1, one), _inputs_of(shared, x2, two)
        return kernel.tile(*sides, dtype, true=true, inputs_last=inputs_last)

    def same(shared: Any, x: Any, true: Any, inputs_last: bool) -> Any:
        options = {"true": true, "inputs_last": inputs_last}
        return kernel.same(_inputs_of(shared, x), dtype, **options)

    def both(
        shared: Any, x1: Any, x2: Any, one: Any, two: Any, true: Any, inputs_last: bool
    ) -> Any:
        sides = _inputs_of(shared, x1, one), _inputs_of(shared, x2, two)
        return kernel.both(*sides, dtype, true=true, inputs_last=inputs_last)

    return BlockKernel(tile, same, both)


def _inputs_of(shared: Any, x: Any, ids: Any = None) -> Inputs:
    """Inputs of a network that do not interact, with what they share."""
    count = jax.tree.leaves(x)[0].shape[0]
    return Inputs(shared, named_inputs(x, whole=True), count, ids)


def _check_sampling(samples: Any, rtol: float | None, route: str) -> None:
    whole = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    if not whole or not 2 <= samples <= MAX_SAMPLES or samples & (samples - 1):
        raise InputError(
            f"`samples` should be a power of two from 2 to {MAX_SAMPLES}, got "
            f"{samples!r}."
        )
    if rtol is not None and not rtol > 0:
        raise InputError(f"`rtol` should be a positive number, got {rtol!r}.")
    if route not in ("auto", "samples"):
        raise InputError(f"`route` should be 'auto' or 'samples', got {route!r}.")


def _check_axes(x1: Any, x2: Any) -> None:
    """Refuse two data sets whose inputs do not have the same axes."""
    a, b = jax.tree.leaves(x1), jax.tree.leaves(x2)
    if len(a) != len(b) or any(
        np.ndim(p) != np.ndim(q) for p, q in zip(a, b, strict=True)
    ):
        raise ShapeMismatchError(
            f"`x2` has shape {_shapes(x2)} and `x1` has shape {_shapes(x1)}: both hold "
            "inputs along the first axis, with the same axes after it."
        )


def _checked_numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Kernels none of which is NaN, as far as they are not traced."""
    for name, k in found.items():
        # The least of numbers is NaN where one of them is.
        if is_concrete(k) and k.size and bool(np.isnan(small_as_numpy(k).min())):
            at = tuple(int(i) for i in np.argwhere(np.isnan(np.asarray(k)))[0])
            raise NoLimitError(
                f"The kernel `{name}` is NaN at {at}: an expectation in it does not "
                "exist for these inputs. Is a function undefined there, or something "
                "divided by what is zero, as in normalising equal inputs?"
            )
    return found


def _equal_inputs(k: Any) -> Any:
    """Every input with itself, (N, ...), from (N, N, ...)."""
    return jnp.moveaxis(jnp.diagonal(k, axis1=0, axis2=1), -1, 0)


def _at_output(k: Any, at: tuple[int, ...]) -> Any:
    """The gradients of one position of the output: two of its axes fewer."""
    rank = (k.ndim - 2) // 2 - len(at)
    there = (slice(None),) * rank
    return k[(slice(None), slice(None), *at, *there, *at, *there)]


def _each(found: Estimate, f: Callable[[Any], Any]) -> Estimate:
    """A function of the value, and of its errors entry by entry."""
    changed = {k: f(getattr(found, k)) for k in ("value", "error", "stderr")}
    return dataclasses.replace(found, **changed)


def _has_finite_sum(a: Any) -> bool:
    """Whether all entries are finite, and not by chance so large that nobody knows.

    Several times faster than a look at each of them.
    """
    # The data of a user are concrete even inside of somebody's trace.
    with np.errstate(over="ignore", invalid="ignore"), jax.ensure_compile_time_eval():
        return bool(np.isfinite(small_as_numpy(a).sum()))


def _shapes(x: Any) -> str:
    return ", ".join(str(np.shape(a)) for a in jax.tree.leaves(x))


def _dtype(x: Any) -> Any:
    floats = [
        a.dtype for a in jax.tree.leaves(x) if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    default = jnp.result_type(float)
    if not floats:
        return default
    return jax.dtypes.canonicalize_dtype(functools.reduce(jnp.promote_types, floats))


def _abstract(x: Any, dtype: Any) -> Any:
    """The shapes of inputs, in the precision of the work."""

    def one(a: Any) -> jax.ShapeDtypeStruct:
        a = a if hasattr(a, "dtype") else np.asarray(a)
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(
            a.shape, dtype if floating else jax.dtypes.canonicalize_dtype(a.dtype)
        )

    return jax.tree.map(one, x)


def _some(x: Any) -> Any:
    """Inputs, or a few of such shapes."""

    def one(a: Any) -> Any:
        if not isinstance(a, jax.ShapeDtypeStruct):
            return np.asarray(a) if is_concrete(a) else a
        return np.zeros((min(a.shape[0], 3), *a.shape[1:]), a.dtype)

    return jax.tree.map(one, x)


def _cast(x: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda a: jnp.asarray(
            a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else None
        ),
        x,
    )
