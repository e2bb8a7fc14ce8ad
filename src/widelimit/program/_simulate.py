"""Run a tensor program at finite widths, for many random draws at once."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, ShapeMismatchError
from ._lines import (
    Input,
    Map,
    Ref,
)
from ._program import TensorProgram
from ._run import Run, dims
from ._source import at

# Bytes of one batch of seeds; more seeds than fit are run one batch after another.
_BATCH_BYTES = 1 << 29


class Simulation(Mapping[str, jax.Array]):
    """The values of the lines of a program, by name, position or handle.

    A vector family has shape (seeds, *index shape, width), a tensor or an output
    (seeds, *index shape). Matrices are not kept.
    """

    def __init__(self, names: Sequence[str], values: dict[Ref, jax.Array]) -> None:
        self._refs = {name: ref for ref, name in enumerate(names)}
        self._values = values

    def __getitem__(self, line: Any) -> jax.Array:
        ref = getattr(line, "ref", line)
        if isinstance(ref, str):
            ref = self._refs.get(ref, -1)
        if ref not in self._values:
            known = ", ".join(self)
            raise InputError(
                f"`{getattr(line, 'name', line)}` has no value in this simulation; "
                f"lines with values: {known}. Simulate after the line is made."
            )
        return self._values[ref]

    def __iter__(self) -> Iterator[str]:
        return (name for name, ref in self._refs.items() if ref in self._values)

    def __len__(self) -> int:
        return len(self._values)


def simulate(
    program: TensorProgram,
    widths: Mapping[str, int],
    key: jax.Array,
    seeds: int = 1,
    inputs: Mapping[str, Any] | None = None,
) -> Simulation:
    """Draw the random inputs of a program at finite widths and run its lines.

    The draw of an input line depends on the key, on the line's name and on its shape
    only, so that programs with equal input lines see equal matrices; and draw `s` does
    not depend on how many draws there are. Double precision when JAX has it enabled.

    Args:
        program: the program.
        widths: the number of coordinates for every width name.
        key: a `jax.random` key.
        seeds: how many independent draws.
        inputs: arrays for the input lines of the program.

    Returns:
        The value of every line that is not a matrix, the draws first.

    Raises:
        InputError: a width, an input or the key is missing or of the wrong kind.
        ShapeMismatchError: an input has another shape than its line.
        InvalidProgramError: a width does not divide as the program needs.
    """
    sizes = _check_widths(program, widths)
    if not isinstance(seeds, int | np.integer) or isinstance(seeds, bool) or seeds < 1:
        raise InputError(
            f"`seeds` is a whole number of draws, at least 1; got {seeds!r}."
        )
    data = _check_inputs(program, inputs or {})
    run = Run(program, sizes, data)
    try:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(int(seeds)))
    except (TypeError, ValueError):
        raise InputError(
            f"`key` is a JAX random key such as jax.random.key(0), got {key!r}."
        ) from None
    batch = max(1, _BATCH_BYTES // max(1, run.bytes))
    starts = range(0, int(seeds), batch)
    parts = [jax.vmap(run.values)(keys[s : s + batch]) for s in starts]
    values = {
        ref: jnp.concatenate([p[ref] for p in parts])
        if len(parts) > 1
        else parts[0][ref]
        for ref in parts[0]
    }
    return Simulation([line.name for line in program.lines], values)


def _check_widths(program: TensorProgram, widths: Mapping[str, int]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, value in widths.items():
        try:
            sizes[name] = operator.index(value)
        except TypeError:
            sizes[name] = 0
        if sizes[name] < 1 or isinstance(value, bool):
            raise InputError(
                f"The width `{name}` is a whole number of coordinates, at least 1; "
                f"got {value!r}."
            )
    for line, t in zip(program.lines, program.types, strict=True):
        for dim in dims(t):
            missing = sorted(dim.widths - sizes.keys())
            if missing:
                raise InputError(
                    f"No number is given for the width `{missing[0]}` of line "
                    f"`{line.name}`; given: {', '.join(sizes) or 'none'}. Write, for "
                    f"example, {{'{missing[0]}': 1000}}.{at(line.source)}"
                )
            dim.size(sizes)
    return sizes


def _check_inputs(
    program: TensorProgram, inputs: Mapping[str, Any]
) -> dict[str, jax.Array]:
    data = {}
    for line in program.lines:
        if not (isinstance(line, Map) and isinstance(line.op, Input)):
            continue
        key = line.op.key
        if key not in inputs:
            raise InputError(
                f"The program reads an input `{key}` of shape {line.shape}: pass "
                f"inputs={{{key!r}: ..}}; given: "
                f"{', '.join(map(str, inputs)) or 'none'}."
            )
        data[key] = jnp.asarray(inputs[key])
        if data[key].shape != line.shape:
            raise ShapeMismatchError(
                f"The input `{key}` has shape {line.shape} in the program, "
                f"got {data[key].shape}."
            )
    return data
