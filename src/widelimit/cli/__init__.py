"""The command `widelimit`."""

from ._main import main as main
