"""Fig 6 (section 3.4): going beyond the standard Inception, wider by sqrt(2) or deeper by four pairs.

    python figures/fig6.py [ROOT] [--out DIR]

The paper's claim to look for: both students converge faster than the standard net and end above it. The paper did not
train the large nets from scratch; where they were run, they are here.
"""

import sys

from figures.command import main
from figures.curves import Plot

FIG6 = Plot(
    name="fig6",
    curves={
        "wider_sqrt2": "Net2WiderNet student, $\\sqrt{2}$ wider",
        "deeper_4pairs": "Net2DeeperNet student, 4 more pairs",
        "standard": "Inception from scratch, for reference",
        "sqrt2_random_init": "$\\sqrt{2}$ wider net, random initialization",
        "4pairs_random_init": "4 more pairs, random initialization",
    },
    students=("wider_sqrt2", "deeper_4pairs"),
    scratch="standard",
    teacher="standard",
    teacher_label="Teacher (standard Inception)",
    also=("sqrt2_random_init", "4pairs_random_init"),
)

if __name__ == "__main__":
    sys.exit(main(FIG6))
