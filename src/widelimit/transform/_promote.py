"""Terms of order n^-1/2 that a readout brings back.

Where x moves by n^-1/2 c, a readout f = n^-1/2 <v, h(x)> moves by

    n^-1/2 sum_i df/dx_i c_i  ->  E[dx c],      dx = sqrt(n) df/dx,

which is of order one when c depends on v: a step of gradient descent moves every hidden
vector by n^-1/2, and the output by the tangent kernel. The backward pass of f gives dx.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from .._errors import UnsupportedError
from ..gaussian import may_jump
from ..program import (
    AxisMap,
    LinComb,
    Moment,
    Nonlin,
    Perturbation,
    Readout,
    Ref,
    TensorArg,
    TensorProgram,
    Term,
    VecIn,
    Vector,
    Writer,
    ancestors,
    at,
    identity_maps,
    operands,
    renumber,
)
from ..scalar import Arg, Const, call, substitute
from ._adjoints import wide
from ._backprop import Gradients, backprop
from ._rewritten import Rewritten


def promote(
    program: TensorProgram,
    perturbations: Sequence[Perturbation],
    ratios: Mapping[str, float],
) -> Rewritten:
    """Add to every readout what perturbations of order n^-1/2 make of it.

    Keeps: the limit of every line, which has no perturbation but in its readouts.
    Gives: a program without the lines of the perturbations.

    Args:
        program: a program in which perturbations are inputs without noise.
        perturbations: what they stand for.
        ratios: widths over their common scale n; 1 where missing.

    Raises:
        UnsupportedError: a function that jumps, or without a known derivative, takes a
            perturbation to a readout that it counts in.
    """
    by = {p.at: p for p in perturbations}
    writer, place = Writer(), dict[Ref, Ref]()
    for ref, line in enumerate(program.lines):
        place[ref] = new = writer.emit(renumber(line, place))
        if not isinstance(line, Readout):
            continue
        counts = [by[z] for z in _reaching(program, line, by)]
        if not counts:
            continue
        for p in counts:
            _check_smooth(program, p, ref)
        back = backprop(TensorProgram(tuple(writer.lines)), [new])
        writer, (gradients,) = Writer(back.program), back.gradients
        terms = [Term(new, maps=identity_maps(line.shape))]
        for p in counts:
            if place[p.at] in gradients.adjoints:
                terms += _change(writer, gradients, p.moved(place), ratios)
        moved = LinComb(
            name="", terms=tuple(terms), shape=line.shape, source=line.source
        )
        place[ref] = writer.emit(moved)
    outputs = tuple(place[r] for r in program.outputs)
    taps = tuple((name, place[r]) for name, r in program.taps)
    done = TensorProgram(tuple(writer.lines), outputs, taps)
    without = _without(done, {place[p.at] for p in perturbations})
    return Rewritten(without.program, {r: without.place[i] for r, i in place.items()})


def _reaching(
    program: TensorProgram, line: Readout, by: Mapping[Ref, Perturbation]
) -> list[Ref]:
    """The perturbations of a readout's vector that depend on its weights."""
    if line.v in by:
        return [line.v]
    return [
        z
        for z in sorted(ancestors(program.lines, line.x) & by.keys())
        if any(line.v in ancestors(program.lines, p.vector) for p in by[z].parts)
    ]


def _check_smooth(program: TensorProgram, p: Perturbation, output: Ref) -> None:
    """The derivative of a readout is that of its functions where none of them jumps."""
    moved = {p.at}
    needed = ancestors(program.lines, output)
    for ref, line in enumerate(program.lines):
        if ref not in needed or moved.isdisjoint(operands(line)):
            continue
        moved.add(ref)
        if not isinstance(line, Nonlin | Moment):
            continue
        args = (*line.xs, *(t.ref for t in line.tensors))
        if any(r in moved and may_jump(line.fn, i) for i, r in enumerate(args)):
            raise UnsupportedError(
                "A term of order n^-1/2 counts in the output, and a function that "
                f"jumps takes it there: `{line.name}`{at(line.source)}. Its change is "
                "not covered: use a continuous function, or leave out the term"
                f"{at(p.source)}."
            )


def _change(
    writer: Writer, gradients: Gradients, p: Perturbation, ratios: Mapping[str, float]
) -> list[Term]:
    """The sum over coordinates of the adjoint times the perturbation."""
    adjoint = gradients.adjoints[p.at]
    lead, shape = gradients.shape, writer.types[p.at].shape
    unit = gradients.width.ratio(ratios) ** 0.5
    factor = wide(writer, p.at).dim.ratio(ratios) / unit
    terms = []
    for part in p.parts:
        whole = writer.types[part.vector].shape
        sizes = lead + whole
        behind = identity_maps(whole, len(lead))
        own = identity_maps(lead + shape)
        pair = [_read(writer, adjoint, own, sizes)]
        pair.append(_read(writer, part.vector, behind, sizes))
        fn = call("mul", Arg(0), Arg(1)) if pair[0] != pair[1] else _SQUARE
        moment = Moment(name="", fn=fn, xs=tuple(dict.fromkeys(pair)), source=p.source)
        mean = TensorArg(writer.emit(moment), tuple(range(len(sizes))))
        maps: tuple[AxisMap, ...] = ()
        if part.coefficient is not None:
            read = writer.types[part.coefficient].shape
            letters = zip(part.letters, read, strict=True)
            maps = tuple(AxisMap.identity(len(lead) + a, s) for a, s in letters)
        terms.append(
            Term(part.coefficient, factor * part.scale, (mean,), maps, sums=whole)
        )
    return terms


_SQUARE = call("mul", Arg(0), Arg(0))


def _read(
    writer: Writer, x: Ref, maps: tuple[AxisMap, ...], shape: tuple[int, ...]
) -> Ref:
    """A vector at every position of `shape`."""
    if maps == identity_maps(shape):
        return x
    return writer.emit(LinComb(name="", terms=(Term(x, maps=maps),), shape=shape))


def _without(program: TensorProgram, zeros: set[Ref]) -> Rewritten:
    """The program where some lines are zero, and what is zero by them."""
    zero, writer, place = set(zeros), Writer(), dict[Ref, Ref]()
    for ref, line in enumerate(program.lines):
        match line:
            case LinComb():
                line = _combination(line, zero)
            case Nonlin() | Moment():
                line = _at_zero(line, zero)
            case _ if zero.intersection(operands(line)):
                zero.add(ref)
        if isinstance(line, LinComb) and not line.terms:
            zero.add(ref)
        if ref in zero:
            kind = program.types[ref]
            dim = kind.dim if isinstance(kind, Vector) else None
            line = VecIn(name="zero", shape=kind.shape, dim=dim, std=0.0)
        place[ref] = writer.emit(renumber(line, place))
    return Rewritten(
        TensorProgram(
            tuple(writer.lines),
            tuple(place[r] for r in program.outputs),
            tuple((name, place[r]) for name, r in program.taps),
        ),
        place,
    )


def _combination(line: LinComb, zero: set[Ref]) -> LinComb:
    terms = tuple(t for t in line.terms if t.x not in zero)
    if terms and all(t.x is None for t in terms):
        # One zero stays, which gives the constants their width.
        terms += tuple(
            dataclasses.replace(t, scale=0.0) for t in line.terms if t.x is not None
        )[:1]
    return dataclasses.replace(line, terms=terms)


def _at_zero(line: Nonlin | Moment, zero: set[Ref]) -> Nonlin | Moment:
    kept = [x for x in line.xs if x not in zero] or [line.xs[0]]
    places = [Const(0.0) if x in zero else Arg(kept.index(x)) for x in line.xs]
    places += [Arg(len(kept) + i) for i in range(len(line.tensors))]
    return dataclasses.replace(line, fn=substitute(line.fn, places), xs=tuple(kept))
