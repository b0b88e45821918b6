"""All runs of Figures 4, 5 and 6; the standard net from scratch is shared by the three.

python -m replicate                            # laptop scale: Fashion-MNIST, CPU
python -m replicate --scale smoke              # a few steps of everything
python -m replicate status                     # done, running, failed, waiting: every stage of every figure
python -m replicate clean                      # folders of runs that failed before they began
python -m replicate new-scale mine --data PATH # a scale for images of one's own
"""

import sys

from experiments.output import script
from replicate import clean, new_scale, status
from replicate.launch import main

if __name__ == "__main__":
    commands = {"status": status.main, "clean": clean.main, "new-scale": new_scale.main}
    if sys.argv[1:2] and sys.argv[1] in commands:
        script(commands[sys.argv[1]], sys.argv[2:])
    script(main, __doc__)
