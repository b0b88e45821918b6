"""Draw all three figures: `python -m figures [ROOT] [--out DIR]`."""

from experiments.output import script
from figures.command import main

if __name__ == "__main__":
    script(main)
