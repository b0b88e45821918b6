"""Fetch and verify Fashion-MNIST.

python -m training.fashion_mnist --root data
"""

import argparse
import sys
from pathlib import Path

from experiments.output import script
from experiments.paths import to_path
from training.data.fashion_mnist import fetched
from training.errors import DataError


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch and verify Fashion-MNIST.")
    parser.add_argument("--root", type=to_path, default=Path("data"), help="data folder (default: %(default)s)")
    try:
        raw, how = fetched(parser.parse_args().root)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Fashion-MNIST: four files, checksums right, in {raw} ({how})")
    return 0


if __name__ == "__main__":
    script(main)
