"""The pixels that training and validation are fed, as they were recorded: begun runs go on with the same ones.

`PYTHONPATH=tests python tests/training/test_pixels.py` records anew, after a change that is meant to change them.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from images import section
from PIL import Image
from places import GOLDEN, ROOT

from training.config import load
from training.data.augment import Preparation
from training.data.decode import backend
from training.data.loader import ImageData
from training.data.source import open_data

RECORD = GOLDEN / "pixels.json"
CPU = torch.device("cpu")
KINDS = ("RGB", "L", "P", "CMYK", "RGBA")


def contents(number, kind="RGB", ending="png", size=(150, 110)):
    """A file; of whole numbers only, so that it is the same on every machine (a JPEG: with every libjpeg's version)."""
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = [
        (across * (k + number % 5 + 1) + down * (number % 3 + 2) + across * down // (7 + k)) % 256 for k in (0, 2, 5)
    ]
    file = io.BytesIO()
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    if kind == "P":
        image = image.convert("P", palette=Image.Palette.WEB, dither=Image.Dither.NONE)
    image.convert(kind).save(file, "PNG" if ending == "png" else "JPEG")
    return file.getvalue()


def make(root):
    for split, images in (("train", 5), ("val", 2)):
        for label in range(3):
            for k in range(images):
                path = root / split / f"class{label}" / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents(10 * label + k, ("RGB", "L", "P", "RGBA")[k % 4]))
    return root


def digest(*tensors):
    arrays = [np.ascontiguousarray(tensor) for tensor in tensors]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:24]


def single_images():
    """Of each kind of file, and of sizes that are decoded whole and at reduced scale: training and validation."""
    prepared, found = Preparation(24, 0.875, 0.05, 0.4, True), {}
    for ending in ("png", "jpg"):
        for kind in KINDS:
            if kind == {"png": "CMYK", "jpg": "RGBA"}[ending] or (kind, ending) == ("P", "jpg"):
                continue
            data = [contents(n, kind, ending, size) for n, size in ((1, (150, 110)), (2, (40, 330)))]
            found[f"{ending}/{kind}/train"] = digest(*(prepared.train(d, draw) for d in data for draw in range(6)))
            found[f"{ending}/{kind}/val"] = digest(*map(prepared.val, data))
    return found


def streams(folder):
    """Mini-batches over the end of an epoch, validation and the first images, from files and from memory."""
    small = section(make(folder), 24, (3, 15, 6))
    config = load(ROOT / "configs" / "smoke" / "standard.yaml", ["seed=4", "data.flip=true", "training.batch_size=500"])
    found = {}
    for name, data in (("files", ImageData(small, 4, 6, 3, CPU)), ("memory", open_data(config, CPU))):
        stream = data.stream(data.order.per_epoch - 2)
        taken = [tensor for _ in range(8) for tensor in next(stream)]
        found |= {
            f"{name}/train": digest(*taken),
            f"{name}/val": digest(*(tensor for batch in data.validation() for tensor in batch)),
            f"{name}/first": digest(data.first_images(7)),
            f"{name}/which": data.fingerprint[:24],
        }
        data.close()
    return found


def test_the_pixels_are_those_that_they_were(tmp_path):
    record = json.loads(RECORD.read_text())
    now = {**single_images(), **streams(tmp_path)}
    if backend() != record["backend"]:  # another libjpeg may round otherwise, which run.json records
        record["pixels"] = {k: v for k, v in record["pixels"].items() if not k.startswith("jpg")}
        now = {k: v for k, v in now.items() if not k.startswith("jpg")}
    assert now == record["pixels"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_the_digests_tell_one_pixel(part):
    prepared = Preparation(24, 0.875, 0.05, 0.4, True)
    data = contents(1)
    pixels = (prepared.train(data, 0) if part == "train" else prepared.val(data)).copy()
    before = digest(pixels)
    pixels[3, 4, 1] ^= 1
    assert digest(pixels) != before


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        pixels = {**single_images(), **streams(Path(scratch))}
    RECORD.write_text(json.dumps({"backend": backend(), "pixels": pixels}, indent=1) + "\n")
