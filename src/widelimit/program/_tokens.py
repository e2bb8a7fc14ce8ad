"""Tokens of one line of a program's text."""

import dataclasses
import re

from .._errors import ParseError

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      |(?P<comment>\#.*)
      |(?P<quoted>`[^`]+`)
      |(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      |(?P<name>[^\W\d]\w*)
      |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      |(?P<symbol>:=|\*\*|//|[-+*/%@<>=:;,.(){}\[\]])""",
    re.VERBOSE,
)
_OPEN, _CLOSE = "([{", ")]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind, its text and where it stands in the line."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def is_name(self) -> bool:
        """Whether it can name a line."""
        return self.kind in ("name", "quoted")

    @property
    def name(self) -> str:
        """The name without back quotes."""
        return self.text.strip("`")


class Tokens:
    """A cursor over the tokens of a line."""

    def __init__(self, line: str, tokens: list[Token]) -> None:
        self.line = line
        self.tokens = tokens
        self.at = 0

    @classmethod
    def of(cls, line: str) -> "Tokens":
        """The tokens of a line; comments and spaces are dropped."""
        tokens, at = [], 0
        while at < len(line):
            found = _TOKEN.match(line, at)
            if found is None:
                raise ParseError(
                    f"the character {line[at]!r} is not part of the language"
                )
            at = found.end()
            kind = str(found.lastgroup)
            if kind not in ("space", "comment"):
                tokens.append(Token(kind, found.group(), found.start(), at))
        return cls(line, tokens)

    @property
    def next(self) -> str:
        """The text of the next token, '' at the end."""
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    @property
    def after(self) -> str:
        """The text of the token after the next one, '' past the end."""
        return self.tokens[self.at + 1].text if self.at + 1 < len(self.tokens) else ""

    def take(self, *texts: str) -> bool:
        """Step over the given tokens if they come next."""
        found = [t.text for t in self.tokens[self.at : self.at + len(texts)]]
        if found != list(texts):
            return False
        self.at += len(texts)
        return True

    def expect(self, text: str) -> None:
        """Step over one token that must come next."""
        if not self.take(text):
            raise ParseError(f"expected `{text}`, found {self.found()}")

    def found(self) -> str:
        """The next token, for a message."""
        return f"`{self.next}`" if self.next else "the end of the line"

    def name(self, what: str) -> str:
        """Step over a name."""
        if self.at >= len(self.tokens) or not self.tokens[self.at].is_name:
            raise ParseError(f"expected {what}, found {self.found()}")
        self.at += 1
        return self.tokens[self.at - 1].name

    def number(self, what: str) -> float:
        """Step over a number."""
        if self.at >= len(self.tokens) or self.tokens[self.at].kind != "number":
            raise ParseError(f"expected {what}, found {self.found()}")
        self.at += 1
        return float(self.tokens[self.at - 1].text)

    def size(self) -> int:
        """Step over a whole number."""
        value = self.number("a size")
        if not value.is_integer():
            raise ParseError(f"expected a whole number for a size, found {value}")
        return int(value)

    def string(self, what: str) -> str:
        """Step over a quoted string; returns it with its quotes."""
        if self.at >= len(self.tokens) or self.tokens[self.at].kind != "string":
            raise ParseError(f"expected {what}, found {self.found()}")
        self.at += 1
        return self.tokens[self.at - 1].text

    def end(self) -> None:
        """Nothing may follow."""
        if self.next:
            raise ParseError(f"expected the end of the line, found {self.found()}")

    def until(self, *stops: str) -> "Tokens":
        """Step to the first of `stops` outside brackets; returns what was passed."""
        start, depth = self.at, 0
        while self.next:
            if depth == 0 and self.next in stops:
                break
            depth += (self.next in _OPEN) - (self.next in _CLOSE)
            if depth < 0:
                break
            self.at += 1
        return Tokens(self.line, self.tokens[start : self.at])

    def group(self, opening: str, closing: str) -> "Tokens":
        """Step over a bracketed group; returns its inside."""
        self.expect(opening)
        inside = self.until(closing)
        self.expect(closing)
        return inside

    def split(self, separator: str = ",") -> list["Tokens"]:
        """The rest in parts; [] when there is nothing."""
        parts = []
        while self.next:
            parts.append(self.until(separator))
            if not self.take(separator):
                break
        self.end()
        return parts

    @property
    def text(self) -> str:
        """The original text of all tokens."""
        if not self.tokens:
            return ""
        return self.line[self.tokens[0].start : self.tokens[-1].end]
