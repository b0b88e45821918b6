"""All runs of Figures 4, 5 and 6; the standard net from scratch is shared by the three.

python -m replicate                            # laptop scale: Fashion-MNIST, CPU
python -m replicate --scale smoke              # a few steps of everything
python -m replicate status                     # done, running, failed, waiting: every stage of every figure
"""

import sys

from replicate import status
from replicate.launch import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["status"]:
        sys.exit(status.main(sys.argv[2:]))
    sys.exit(main(__doc__))
