"""The paper's figures 4, 5 and 6, redrawn from CSV files: pandas and matplotlib, no other package of ours."""
