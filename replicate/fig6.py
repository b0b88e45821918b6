"""Figure 6, exploring the design space (sec 3.4): sqrt(2) wider, and four more pairs, both grown from the standard net.

    python replicate/fig6.py                       # laptop scale: Fashion-MNIST, CPU
    python replicate/fig6.py --seeds 0 1 2 --dry-run
    python replicate/fig6.py --scale imagenet --launcher slurm --cluster cluster.yaml      # see docs/cluster.md

As in the paper the larger nets are not trained from scratch; the standard net from scratch is shown for reference.
"""

from experiments.output import script
from replicate.launch import main

if __name__ == "__main__":
    script(main, __doc__, ("fig6",))
