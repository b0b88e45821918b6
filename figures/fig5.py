"""Fig 5 (section 3.3): deepening the standard Inception, two more pairs for each vertical-horizontal pair.

    python figures/fig5.py [ROOT] [--out DIR]

The paper's claim to look for: the Net2DeeperNet student is faster than the same deep net from random
initialisation, in training and in validation accuracy.
"""

from experiments.output import script
from figures.command import main

if __name__ == "__main__":
    script(main, "fig5")
