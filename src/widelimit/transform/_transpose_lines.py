"""The transposes of lines on wide vectors."""

import dataclasses

from .. import scalar
from .._errors import UnsupportedError
from ..program import (
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Ref,
    TensorArg,
    Term,
    at,
    canonical,
    common_dim,
    identity_maps,
)
from ..scalar import Arg, Const, Expr
from ._adjoints import Adjoints, times, wide
from ._invert import Inverse, invert
from ._transpose_tensors import add_read

_ZERO = Const(0.0)


def matmul(adj: Adjoints, line: MatMul, dy: Ref) -> None:
    """y[p] = sum_k A[..] @ x[maps]: dx[i] = sum over the p, k that read i of A^T dy."""
    lead, sizes = len(adj.lead), line.shape + line.sums
    pinned = {a for a in line.letters if a >= 0}
    positions = range(len(line.shape))
    shape = adj.types[line.x].shape
    inverse = invert(line.maps, sizes, shape, lead, positions, pinned)
    if inverse is None:
        return
    product = MatMul(
        name="",
        matrix=adj.transpose(line.matrix),
        letters=tuple(a if a < 0 else inverse.letter(a) for a in line.letters),
        x=dy,
        maps=adj.lead_maps() + inverse.letters[: len(line.shape)],
        shape=adj.lead + shape,
        sums=inverse.sums,
    )
    if inverse.mask is None and inverse.times == 1:
        adj.add(line.x, product)
        return
    # The matrix has no index that reads nothing: multiply first, then place.
    product = dataclasses.replace(
        product,
        letters=adj.behind(line.letters),
        maps=identity_maps(adj.lead + line.shape),
        shape=adj.lead + sizes,
        sums=(),
    )
    inverse = invert(line.maps, sizes, shape, lead, range(len(sizes)))
    assert inverse is not None
    adj.add(line.x, _placed(adj, inverse, adj.emit(product), len(sizes)))


def lincomb(adj: Adjoints, line: LinComb, dy: Ref) -> None:
    """y[p] = scale sum_k T x[maps]: dx[i] = scale sum over what reads i of T dy."""
    rank = len(line.shape)
    for term in line.terms:
        if term.scale == 0.0:
            continue
        _coefficients(adj, line, term, dy)
        if term.x is None:
            continue
        inverse = invert(
            term.maps,
            line.shape + term.sums,
            adj.types[term.x].shape,
            len(adj.lead),
            range(rank),
            {a for t in term.tensors for a in t.letters if a >= 0},
        )
        if inverse is not None:
            adj.add_along(
                wide(adj.writer, dy).dim, term.x, _placed(adj, inverse, dy, rank, term)
            )


def _placed(
    adj: Adjoints, inverse: Inverse, dy: Ref, rank: int, term: Term | None = None
) -> Term:
    """The adjoint `dy` of the first `rank` letters, read where the inverse says."""
    maps = adj.lead_maps() + inverse.letters[:rank]
    maps, indicator = adj.confined(inverse.mask, maps)
    scale, tensors = (1.0, ()) if term is None else (term.scale, term.tensors)
    read = tuple(
        TensorArg(t.ref, tuple(a if a < 0 else inverse.letter(a) for a in t.letters))
        for t in tensors
    )
    return Term(dy, scale * inverse.times, read + indicator, maps, inverse.sums)


def _coefficients(adj: Adjoints, line: LinComb, term: Term, dy: Ref) -> None:
    """The adjoints of coefficients that depend on wide vectors.

    y[p] = sum_k t[..] x[maps] and t gain E[dy[p] x[maps]] at every p, k.
    """
    active = [i for i, t in enumerate(term.tensors) if t.ref in adj.active]
    if not active:
        return
    sizes = line.shape + term.sums
    vectors = [dy]
    if term.sums:
        read = Term(dy, maps=identity_maps(adj.lead + line.shape))
        vectors = [adj.emit(LinComb(name="", terms=(read,), shape=adj.lead + sizes))]
    if term.x is not None:
        vectors.append(adj.reread(term.x, term.maps, sizes))
    ratio = adj.ratio(wide(adj.writer, dy).dim, adj.width)
    for i in active:
        others = [adj.shifted(t) for j, t in enumerate(term.tensors) if j != i]
        fn: Expr = Arg(0)
        for a in range(1, len(vectors) + len(others)):
            fn = scalar.call("mul", fn, Arg(a))
        if term.scale != 1.0:
            fn = scalar.call("mul", Const(term.scale), fn)
        fn, more = times(fn, ratio, len(vectors) + len(others))
        m = adj.moment(fn, (), vectors, [*others, *more])
        add_read(adj, term.tensors[i], m, sizes)


def nonlin(adj: Adjoints, line: Nonlin, dy: Ref) -> None:
    """H = phi(x.., t..): dx = phi_x dh and t gains E[phi_t dh]."""
    count, dim = len(line.xs), wide(adj.writer, dy).dim
    shape = adj.types[line.xs[0]].shape
    tensors = [adj.shifted(t) for t in line.tensors]
    # The arguments: forward vectors, then dh, then tensors.
    places = [Arg(i) for i in range(count)]
    places += [Arg(count + 1 + j) for j in range(len(tensors))]
    for i, x in enumerate(line.xs):
        match scalar.differentiate(line.fn, i):
            case Const(0.0):
                pass
            case Const(c):
                part = Term(dy, c, maps=identity_maps(adj.lead + shape))
                adj.add_along(dim, x, part)
            case d:
                fn = scalar.call("mul", scalar.substitute(d, places), Arg(count))
                adj.add_along(dim, x, adj.nonlin(fn, line.xs, [dy], tensors))
    for j, arg in enumerate(line.tensors):
        d = scalar.differentiate(line.fn, count + j)
        if arg.ref in adj.active and d != _ZERO:
            fn = scalar.call("mul", scalar.substitute(d, places), Arg(count))
            ratio = adj.ratio(dim, adj.width)
            fn, more = times(fn, ratio, count + 1 + len(tensors))
            m = adj.moment(fn, line.xs, [dy], [*tensors, *more])
            add_read(adj, arg, m, shape)


def moment(adj: Adjoints, line: Moment, dt: Ref) -> None:
    """T = E psi(x.., s..): dx = dt psi_x, and s gains dt E[psi_s]."""
    count = len(line.xs)
    shape = adj.types[line.xs[0]].shape
    tensors = [adj.whole(dt), *(adj.shifted(t) for t in line.tensors)]
    places = [Arg(i) for i in range(count)]
    places += [Arg(count + 1 + j) for j in range(len(line.tensors))]
    dim = common_dim(wide(adj.program, x).dim for x in line.xs)
    assert dim is not None
    ratio = adj.ratio(adj.width, dim)
    for i, x in enumerate(line.xs):
        d = scalar.differentiate(line.fn, i)
        if d == _ZERO:
            continue
        if wide(adj.program, x).dim != dim:
            raise UnsupportedError(
                f"The gradient of a mean over the channels of all heads, "
                f"`{line.name}`, by what they share, `{adj.lines[x].name}`, is not "
                f"covered.{at(line.source)}"
            )
        fn = scalar.call("mul", scalar.substitute(d, places), Arg(count))
        fn, more = times(fn, ratio, count + len(tensors))
        adj.add(x, adj.nonlin(fn, line.xs, (), [*tensors, *more]))
    for j, arg in enumerate(line.tensors):
        d = scalar.differentiate(line.fn, count + j)
        if arg.ref not in adj.active or d == _ZERO:
            continue
        letters = tuple(range(len(adj.lead) + len(shape)))
        args = [(dt, letters)]
        fn: Expr = Arg(0)
        if isinstance(d, Const):
            fn = scalar.call("mul", d, fn)
        else:
            psi, xs, ts = canonical(d, line.xs, line.tensors)
            m = adj.emit(Moment(name="", fn=psi, xs=tuple(xs), tensors=tuple(ts)))
            fn = scalar.call("mul", fn, Arg(1))
            args.append((m, letters[len(adj.lead) :]))
        add_read(adj, arg, adj.map(fn, args, adj.lead + shape), shape)
