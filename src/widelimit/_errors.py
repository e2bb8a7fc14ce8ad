"""The exceptions that a user of widelimit can meet."""


class WidelimitError(Exception):
    """Base class of every error that widelimit raises on purpose."""


class UnsupportedError(WidelimitError, NotImplementedError):
    """A primitive or pattern that the compiler does not cover (yet)."""


class NoLimitError(WidelimitError, ValueError):
    """The network has no finite limit.

    The message names the quantity and its power of the width, or the expectation that
    does not exist and what it divides by.
    """


class ShapeMismatchError(WidelimitError, ValueError):
    """Arrays, widths or index shapes from the caller disagree."""


class InputError(WidelimitError, ValueError):
    """Data that cannot be used: not finite, empty, of the wrong type or range."""


class ParseError(WidelimitError, ValueError):
    """A text that is not a tensor program; the message shows the line."""


class InvalidProgramError(WidelimitError, ValueError):
    """A tensor program that breaks the rules of the language."""
