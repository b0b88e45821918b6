"""From a file's bytes to an image: what decodes, and what is wrong with a file that cannot be decoded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import PIL
from PIL import Image, features

DAMAGED = (OSError, SyntaxError, ValueError, IndexError, KeyError, EOFError)  # and, of Pillow's own modules:
DAMAGED += (struct.error, zlib.error, Image.DecompressionBombError)


class Unreadable(Exception):
    """An image's bytes are there, but they are not an image, or not a whole one."""


def decode(data: bytes) -> Image.Image:
    """The image of a file's contents, in RGB; its EXIF orientation is ignored, as it was in training all along."""
    with reading():
        return Image.open(io.BytesIO(data)).convert("RGB")


@contextmanager
def reading() -> Iterator[None]:
    """Turns what Pillow raises for damaged files into `Unreadable`."""
    try:
        yield
    except DAMAGED as error:
        said = str(error)
        raise Unreadable("not an image" if "cannot identify" in said else said or type(error).__name__) from error


def quiet() -> None:
    """Stop Pillow's warnings about odd but readable files (broken EXIF, transparent palettes) in this process."""
    warnings.filterwarnings("ignore", module="PIL")


def backend() -> str:
    """What decodes and resizes, with versions; for run.json."""
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__} with {jpeg}, bilinear with antialiasing"
