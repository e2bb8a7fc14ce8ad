"""What an engine remembers: questions, and their answers at letters of no question."""

from typing import Any, NamedTuple

from ._loops import Loop


class Key(NamedTuple):
    """A question that is answered once.

    Attributes:
        kind: what is asked.
        lines: the lines it is about, each with its side.
        rest: how their positions meet, and all else that tells it from others.
    """

    kind: str
    lines: tuple[tuple[int, int], ...]
    rest: Any = ()

    def moved(self, loop: Loop, by: int) -> "Key":
        """The same question about a later block of a loop."""

        def line(ref: int) -> int:
            inside = (loop.block(ref) or 0) >= 0 and loop.block(ref) is not None
            return ref + by * loop.period if inside else ref

        return self._replace(lines=tuple((side, line(ref)) for side, ref in self.lines))

    @property
    def side(self) -> int | None:
        """The side of its lines, None for lines of both."""
        sides = {side for side, _ in self.lines}
        return sides.pop() if len(sides) == 1 else None


class Answer(NamedTuple):
    """Numbers at the letters of a question, without axes along which they are constant.

    Attributes:
        array: the numbers.
        places: for every axis the place of its letter among those of the question, or
            ~a for a letter a that all questions share: of inputs, or samples.
    """

    array: Any
    places: tuple[int, ...]


class Value(NamedTuple):
    """The value of a Tensor line, of its shape.

    Attributes:
        array: None for a structural zero.
        batched: whether it has an axis of inputs in front.
    """

    array: Any
    batched: bool = False


class Answers:
    """Answers by question: an `Answer`, a `Value`, or None for a structural zero.

    Inside a loop they stand beside those that were known before it, but for those about
    its blocks.

    Args:
        outer: what was known before.
        loop: the loop.
    """

    def __init__(
        self, outer: "Answers | None" = None, loop: Loop | None = None
    ) -> None:
        self.own: dict[Key, Any] = {}
        self._outer, self._loop = outer, loop

    def __contains__(self, key: Key) -> bool:
        if key in self.own:
            return True
        outer = self._outer
        return outer is not None and self._is_outside(key) and key in outer

    def __getitem__(self, key: Key) -> Any:
        if key in self.own or self._outer is None:
            return self.own[key]
        return self._outer[key]

    def __setitem__(self, key: Key, value: Any) -> None:
        self.own[key] = value

    def _is_outside(self, key: Key) -> bool:
        assert self._loop is not None
        return all(self._loop.block(ref) in (None, -1) for _, ref in key.lines)
