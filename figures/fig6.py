"""Fig 6 (section 3.4): going beyond the standard Inception, wider by sqrt(2) or deeper by four pairs.

    python figures/fig6.py [ROOT] [--out DIR]

The paper's claim to look for: both students converge faster than the standard net and end above it. As in the
paper the big nets are not trained from scratch; the from-scratch curve is the standard net's, their teacher.
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
    },
    students=("wider_sqrt2", "deeper_4pairs"),
    scratch="standard",
    teacher="standard",
    teacher_label="Teacher (standard Inception)",
)

if __name__ == "__main__":
    sys.exit(main(FIG6))
