"""Which runs a figure of the paper needs, and how they are run."""
