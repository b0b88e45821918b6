"""A small ImageNet, drawn, in each of the layouts that people have the real one in."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

CLASSES = ("n00000007", "n00000012", "n00000105", "n00000110")
TRAIN, VAL = 6, 3  # images of each class
COUNTS = (len(CLASSES), len(CLASSES) * TRAIN, len(CLASSES) * VAL)


def section(root, size, counts=COUNTS, **changed):
    """The config's section of data for images of `size` x `size`."""
    values = dict(zip(("classes", "train_images", "val_images"), counts, strict=True))
    values |= {"root": str(root), "folder": Path(root), "name": "imagenet", "image_size": size, "crop_fraction": 0.875}
    values |= {"min_area": 0.05, "color_jitter": 0.4, "flip": True}
    values |= {"workers": 0, "decode": "pillow", "resize": "pillow"}
    return SimpleNamespace(**values | changed)


def picture(number, size=(90, 70)):
    """Smooth shapes under a little noise, different for each number."""
    rng = np.random.default_rng(number)
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    waves = [128 + 90 * np.sin(rng.uniform(2, 9) * across + rng.uniform(2, 9) * down + k) for k in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 3, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def contents(number, kind="RGB"):
    file = io.BytesIO()
    image = picture(number, size=(90, 70) if number % 3 else (64, 100))
    if kind == "P":  # ImageNet has a PNG among its .JPEG files
        image.convert("P").save(file, "PNG")
    else:
        image.convert(kind).save(file, "JPEG", quality=95)
    return file.getvalue()


def make_folders(root):
    """train/<class>/<class>_<k>.JPEG, val/<class>/ILSVRC2012_val_0000000k.JPEG; numbers out of the order of names."""
    number = 0
    kinds = {2: "L", 5: "CMYK", 9: "P"}
    for k in range(TRAIN):
        for name in CLASSES:
            file = root / "train" / name / f"{name}_{k * 37}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents(number, kinds.get(number, "RGB")))
            number += 1
    for _ in range(VAL):
        for name in reversed(CLASSES):
            number += 1
            file = root / "val" / name / f"ILSVRC2012_val_{number - len(CLASSES) * TRAIN:08d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents(number))
    return root


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def val_order(folders):
    """The class of each validation image, in the order of their numbers."""
    return [path.parent.name for path in sorted((folders / "val").rglob("*.JPEG"), key=lambda path: path.name)]


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_archive(folders, root):
    """A tar of tars, a flat tar, and what torchvision makes of the devkit."""
    import torch

    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for name in reversed(CLASSES):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for path in sorted((folders / "train" / name).iterdir()):
                    add(inner, path.name, path.read_bytes())
            add(outer, f"{name}.tar", file.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as flat:
        for path in (folders / "val").rglob("*.JPEG"):
            add(flat, path.name, path.read_bytes())
    torch.save(({}, val_order(folders)), root / "meta.bin")
    return root


def make_shards(folders, root, inside=False, label="cls", numbers=(0, 1, 2, 3)):
    """WebDataset: two shards a split, shuffled; `numbers` are the labels that the classes have there."""
    for split in ("train", "val"):
        images = sorted((folders / split).rglob("*.JPEG"))
        np.random.default_rng(0).shuffle(images)
        for k in range(2):
            name = f"{k:04d}.tar" if inside else f"imagenet1k-{split if split == 'train' else 'validation'}-{k:04d}.tar"
            path = root / split / name if inside else root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for image in images[k::2]:
                    number, key = numbers[CLASSES.index(image.parent.name)], image.stem
                    if label == "json":
                        add(tar, f"{key}.json", json.dumps({"label": number, "wnid": image.parent.name}).encode())
                    add(tar, f"{key}.jpg", image.read_bytes())
                    if label == "cls":
                        add(tar, f"{key}.cls", str(number).encode())
    return root


def make_parquet(folders, root):
    """As on the Hugging Face hub: train-*.parquet and validation-*.parquet, the class behind each image's name."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "cock", "hen", "bee"])}
    )
    for split, name in (("train", "train"), ("val", "validation")):
        images = sorted((folders / split).rglob("*.JPEG"), reverse=True)
        rows = {
            "image": [{"bytes": path.read_bytes(), "path": f"{path.stem}_{path.parent.name}.JPEG"} for path in images],
            "label": [CLASSES.index(path.parent.name) for path in images],
        }
        (root / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


def copy(folders, target) -> Path:
    return Path(shutil.copytree(folders, target))
