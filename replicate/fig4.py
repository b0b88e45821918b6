"""Figure 4, Net2WiderNet (sec 3.2): widen a narrow teacher to the standard net.

    python replicate/fig4.py                       # laptop scale: Fashion-MNIST, CPU
    python replicate/fig4.py --seeds 0 1 2 --dry-run
    python replicate/fig4.py --scale imagenet --launcher slurm --cluster cluster.yaml      # see docs/cluster.md

The teacher has sqrt(0.3) of the standard net's channels in its Inception modules. Against the student stand the same
net padded with random weights ("random pad"), and the standard net from random initialisation.
"""

from experiments.output import script
from replicate.launch import main

if __name__ == "__main__":
    script(main, __doc__, ("fig4",))
