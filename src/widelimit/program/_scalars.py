"""Scalars of a program, and their arithmetic."""

from typing import TYPE_CHECKING, Any

from .._errors import InvalidProgramError
from ..scalar import Arg, Const, Expr, arity, call, substitute
from ._function import canonical
from ._lines import (
    Elementwise,
    Map,
    Ref,
    TensorArg,
)
from ._source import at, caller

if TYPE_CHECKING:
    from ._store import Store


from ._handles import Handle, number


class ScalarHandle(Handle):
    """A scalar (or a tensor of an index shape) that is deterministic in the limit."""

    def __init__(
        self,
        program: "Store",
        ref: Ref | None,
        fn: Expr = Arg(0),  # noqa: B008
        args: tuple[Ref, ...] = (),
    ) -> None:
        self._fn, self._args = fn, args
        super().__init__(program, ref)

    @property
    def shape(self) -> tuple[int, ...]:
        """The index shape; () for a number."""
        return self.program._types[
            self._args[0] if self._ref is None else self._ref
        ].shape

    def _describe(self) -> str:
        return "a scalar expression" if self._ref is None else f"`{self.name}`"

    def _expression(self) -> tuple[Expr, tuple[Ref, ...]]:
        return (self._fn, self._args) if self._ref is None else (Arg(0), (self._ref,))

    def _make(self) -> Ref:
        shape = self.program._types[self._args[0]].shape
        letters = tuple(range(len(shape)))
        fn, _, args = canonical(
            self._fn, (), [TensorArg(a, letters) for a in self._args]
        )
        op = Elementwise(fn, tuple(a.letters for a in args))
        refs = tuple(a.ref for a in args)
        return self.program._append(
            Map(name="", op=op, args=refs, shape=shape, source=self.source), "t"
        )

    def _combine(self, op: str, other: Any, swap: bool = False) -> "ScalarHandle":
        fn, args = self._expression()
        if isinstance(other, ScalarHandle):
            self.program._own(other)
            theirs, more = other._expression()
            self.program._same_shape(self, other)
            other_fn = _shift(theirs, len(args))
        else:
            value, more = number(other, "a number in scalar arithmetic"), ()
            if value is None:
                return NotImplemented
            other_fn = Const(value)
        result = call(op, *((other_fn, fn) if swap else (fn, other_fn)))
        return ScalarHandle(self.program, None, result, args + more)

    def __add__(self, other: Any) -> "ScalarHandle":
        return self._combine("add", other)

    def __radd__(self, other: Any) -> "ScalarHandle":
        return self._combine("add", other, swap=True)

    def __sub__(self, other: Any) -> "ScalarHandle":
        return self._combine("sub", other)

    def __rsub__(self, other: Any) -> "ScalarHandle":
        return self._combine("sub", other, swap=True)

    def __mul__(self, other: Any) -> "ScalarHandle":
        return self._combine("mul", other)

    def __rmul__(self, other: Any) -> "ScalarHandle":
        return self._combine("mul", other, swap=True)

    def __truediv__(self, other: Any) -> "ScalarHandle":
        if isinstance(other, Handle) and not isinstance(other, ScalarHandle):
            raise InvalidProgramError(
                f"A scalar is not divided by {other._describe()}: write "
                f"p.nonlin(lambda u, t: t / u, x, t).{at(caller())}"
            )
        return self._combine("div", other)

    def __rtruediv__(self, other: Any) -> "ScalarHandle":
        return self._combine("div", other, swap=True)

    def __pow__(self, other: Any) -> "ScalarHandle":
        return self._combine("pow", other)

    def __rpow__(self, other: Any) -> "ScalarHandle":
        return self._combine("pow", other, swap=True)

    def __neg__(self) -> "ScalarHandle":
        fn, args = self._expression()
        return ScalarHandle(self.program, None, call("neg", fn), args)


def _shift(fn: Expr, by: int) -> Expr:
    return substitute(fn, [Arg(i + by) for i in range(arity(fn))])
