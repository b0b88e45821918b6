"""Fig 6 (section 3.4): going beyond the standard Inception, wider by sqrt(2) or deeper by four pairs.

    python figures/fig6.py [ROOT] [--out DIR]

The paper's claim to look for: both students converge faster than the standard net and end above it. The paper did not
train the large nets from scratch; where they were run, they are here.
"""

from experiments.output import script
from figures.command import main

if __name__ == "__main__":
    script(main, "fig6")
