"""Figures 4, 5 and 6, the sweeps and the verdicts, from CSV files: pandas and matplotlib, no torch."""

import os

# All is drawn into files. What a shell has for another program (a notebook's) may not be a backend here, and matplotlib
# would refuse to be imported.
os.environ["MPLBACKEND"] = "agg"
