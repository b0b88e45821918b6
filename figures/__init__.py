"""Figures 4, 5 and 6, the sweeps and the verdicts, from CSV files: pandas and matplotlib, no torch."""
