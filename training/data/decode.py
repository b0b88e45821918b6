"""From a file's bytes to an image: what decodes, and what is wrong with a file that cannot be decoded."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import PIL
import torch
from PIL import Image, features

from training.errors import DataError

DAMAGED = (OSError, SyntaxError, ValueError, IndexError, KeyError, EOFError)  # and, of Pillow's own modules:
DAMAGED += (struct.error, zlib.error)


class Unreadable(Exception):
    """An image's bytes are there, but they are not an image, or not a whole one."""


def decode(data: bytes) -> Image.Image:
    """The image of a file's contents, in RGB; its EXIF orientation is ignored, as it was in training all along."""
    with pillow_errors():
        return to_rgb(Image.open(io.BytesIO(data)))


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. Of 16 bits the upper eight: Pillow's own conversion makes all above 255 white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turns what Pillow raises for damaged files into `Unreadable`."""
    try:
        yield
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise Unreadable(f"more than {most:,} pixels, which Pillow does not decode: make it smaller") from error
    except DAMAGED as error:
        said = str(error)
        raise Unreadable("not an image" if "cannot identify" in said else said or type(error).__name__) from error


def silence_pillow() -> None:
    """Stop Pillow's warnings about odd but readable files (broken EXIF, transparent palettes) in this process."""
    warnings.filterwarnings("ignore", module="PIL")


@functools.cache
def torchcodec() -> ModuleType:
    """torchcodec's decoders; `DataError` where it is not installed or does not fit this PyTorch."""
    try:
        found = importlib.import_module("torchcodec.decoders")
        if not hasattr(found, "decode_jpeg"):
            raise ImportError(f"version {importlib.metadata.version('torchcodec')} decodes no images, 0.16 does")
    except (ImportError, OSError, RuntimeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"data.decode is torchcodec, which cannot be used here ({why}): `pip install torchcodec`, in the version "
            "that goes with this PyTorch. A run that has not begun can be given --set data.decode=pillow instead"
        ) from None
    return found


def decode_jpeg(data: bytes) -> torch.Tensor:
    """A JPEG file's contents -> uint8 [3, H, W], by torchcodec."""
    try:
        return torchcodec().decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    except RuntimeError as error:
        raise Unreadable((str(error).splitlines() or [type(error).__name__])[0]) from error


def backend(decode: str = "pillow", resize: str = "pillow") -> str:
    """What decodes and resizes, with versions; for run.json."""
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    by = f"Pillow {PIL.__version__} with {jpeg}"
    if decode == "torchcodec":
        by = f"torchcodec {importlib.metadata.version('torchcodec')}, for what is no plain JPEG {by}"
    return f"{by}, bilinear with antialiasing{f' by torch {torch.__version__}' if resize == 'torch' else ''}"
