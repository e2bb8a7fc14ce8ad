"""Rules of the language that a type cannot say."""

import numpy as np

from .._errors import InputError, ShapeMismatchError
from ._lines import Array, Output, Readout, Ref, Tensor, TensorArg, VecIn, Vector, check
from ._program import TensorProgram, ancestors
from ._source import at


def verify(program: TensorProgram) -> TensorProgram:
    """Check a whole program, between passes and when one comes from outside.

    Types are checked whenever a program is made; here stand names, outputs, taps,
    numbers and the independence of readout vectors.

    Returns:
        The program itself.

    Raises:
        InvalidProgramError: with the line that breaks a rule.
    """
    seen: set[str] = set()
    for ref, line in enumerate(program.lines):
        check(bool(line.name), line, "has no name")
        check(line.name not in seen, line, "shares its name with an earlier line")
        seen.add(line.name)
        if isinstance(line, VecIn):
            _check_vecin(line)
        if isinstance(line, Readout):
            _check_readout(program, ref, line)
    for ref in program.outputs:
        _check_ref(program, ref, "an output")
    for name, ref in program.taps:
        _check_ref(program, ref, f"the tap {name!r}")
    return program


def check_covariance(cov: np.ndarray, what: str, source: str = "") -> None:
    """Refuse a matrix that is no covariance; `source` ends the message.

    Raises:
        ShapeMismatchError: it is not square.
        InputError: it is not finite, not symmetric or has a negative eigenvalue.
    """
    end = at(source)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise ShapeMismatchError(
            f"{what} is a square matrix, got shape {cov.shape}.{end}"
        )
    if not np.all(np.isfinite(cov)):
        raise InputError(f"{what} is not finite: {cov.tolist()}.{end}")
    scale = max(1e-300, float(np.max(np.abs(cov), initial=0.0)))
    gap = np.abs(cov - cov.T)
    if np.max(gap, initial=0.0) > 1e-12 * scale:
        i, j = np.unravel_index(int(np.argmax(gap)), cov.shape)
        raise InputError(
            f"{what} is not symmetric: entry ({i}, {j}) is {cov[i, j]}, entry ({j}, "
            f"{i}) "
            f"is {cov[j, i]}. Pass (cov + cov.T) / 2 if the difference is "
            f"rounding.{end}"
        )
    lowest = float(np.min(np.linalg.eigvalsh(cov), initial=0.0))
    if lowest < -1e-10 * scale:
        raise InputError(
            f"{what} has the eigenvalue {lowest:.3g}: it is no covariance, which has "
            f"none "
            "below 0. Check the correlations: each is between -1 and 1, and they must "
            f"agree with one another.{end}"
        )


def _check_ref(program: TensorProgram, ref: Ref, what: str) -> None:
    line = program.lines[ref if 0 <= ref < len(program) else -1]
    check(0 <= ref < len(program), line, f"{what} is line {ref}, but this is the last")
    ok = isinstance(program.types[ref], Vector | Output | Tensor)
    check(ok, line, f"{what} is a matrix; it must be a vector, tensor or output")


def _check_vecin(line: VecIn) -> None:
    mean = line.mean.value if isinstance(line.mean, Array) else line.mean
    check(bool(np.all(np.isfinite(mean))), line, "its mean is not finite")
    if not isinstance(line.std, TensorArg):
        ok = bool(np.isfinite(line.std)) and line.std >= 0
        check(ok, line, f"its std is {line.std}, not a number of at least 0")
    if line.cov is not None:
        k = int(np.prod(line.shape))
        try:
            check_covariance(np.asarray(line.cov.value, float).reshape(k, k), "cov")
        except (InputError, ShapeMismatchError) as error:
            check(False, line, str(error).rstrip("."))


def _check_readout(program: TensorProgram, ref: Ref, line: Readout) -> None:
    v = program.lines[line.v]
    check(isinstance(v, VecIn), line, "reads out with a vector that is not an input")
    assert isinstance(v, VecIn)
    mean = v.mean.value if isinstance(v.mean, Array) else v.mean
    check(not np.any(mean), line, f"reads out with `{v.name}`, whose mean is not 0")
    above = ancestors(program.lines, line.x)
    check(line.v not in above, line, f"`{v.name}` is also part of what is read out")
