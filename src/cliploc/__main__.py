"""`python -m cliploc` is the command line."""

import sys

from cliploc.cli import main

if __name__ == "__main__":
    sys.exit(main())
