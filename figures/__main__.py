"""Draw all three figures: `python -m figures [ROOT] [--out DIR]`."""

import sys

from figures.command import main
from figures.fig4 import FIG4
from figures.fig5 import FIG5
from figures.fig6 import FIG6

if __name__ == "__main__":
    sys.exit(main(FIG4, FIG5, FIG6))
