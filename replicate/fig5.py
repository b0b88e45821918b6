"""Figure 5, Net2DeeperNet (sec 3.3): two more vertical-horizontal pairs after every pair of the standard net.

    python replicate/fig5.py                       # laptop scale: Fashion-MNIST, CPU
    python replicate/fig5.py --seeds 0 1 2 --dry-run
    python replicate/fig5.py --scale imagenet --launcher slurm --cluster cluster.yaml      # see docs/cluster.md

The teacher is the standard net; against the student stands the same deep net from random initialisation.
"""

from experiments.output import script
from replicate.launch import main

if __name__ == "__main__":
    script(main, __doc__, ("fig5",))
