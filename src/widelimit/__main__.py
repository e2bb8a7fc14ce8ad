"""`python -m widelimit` is the command `widelimit`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
