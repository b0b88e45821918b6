"""Draw all three figures: `python -m figures [ROOT] [--out DIR]`."""

import sys

from figures.command import main

if __name__ == "__main__":
    sys.exit(main())
