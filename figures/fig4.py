"""Fig 4 (section 3.2): widening a narrow Inception to the standard size.

    python figures/fig4.py [ROOT] [--out DIR]

The paper's claims to look for: the Net2WiderNet student converges faster than the "random pad" student and
than the same net from random initialisation, and ends at the same accuracy as the latter.
"""

from experiments.output import script
from figures.command import main

if __name__ == "__main__":
    script(main, "fig4")
