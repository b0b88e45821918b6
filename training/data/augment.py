"""Cropping, flipping and colouring: pure functions of a file's bytes and of one drawn number.

Decoding is the wall (docs/imagenet.md), so a large JPEG is decoded at the reduced scale that its crop needs, and crop
and resize are one operation. Training and validation, in every arm, go through the same lines.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct

import numpy as np
import torch
from PIL import Image, ImageEnhance

from training.data.decode import decode_jpeg, pillow_errors, to_rgb

RATIO = (3 / 4, 4 / 3)  # of a training crop
LOG_RATIO = torch.tensor(RATIO).log().tolist()
GREY = torch.tensor((0.299, 0.587, 0.114))  # of red, green and blue
RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


class Preparation:
    """From a file's contents to the pixels that the network gets, uint8 [size, size, 3]."""

    def __init__(
        self,
        size: int,
        crop_fraction: float,
        min_area: float,
        color_jitter: float,
        flip: bool,
        decode: str = "pillow",
        resize: str = "pillow",
    ):
        """`decode` and `resize` are a config's `data.decode` and `data.resize`."""
        self.size, self.crop_fraction, self.min_area = size, crop_fraction, min_area
        self.color_jitter, self.flip, self.decode, self.resize = color_jitter, flip, decode, resize

    def train(self, data: bytes, draw: int) -> np.ndarray:
        """Random-resized crop, flip and colour jitter, all determined by `draw`."""
        generator = torch.Generator().manual_seed(draw)
        with pillow_errors():
            image = Image.open(io.BytesIO(data))
            left, top, width, height = drawn_crop(*image.size, self.min_area, generator)
            image = self._resized(data, image, (left, top, left + width, top + height))
        flip = self.flip and bool(torch.rand(1, generator=generator) < 0.5)
        if isinstance(image, torch.Tensor):
            if self.color_jitter:
                image = jittered_tensor(image, *drawn_colors(self.color_jitter, generator))
            return _pixels(image.flip(2) if flip else image)
        if self.color_jitter:
            image = jittered(image, *drawn_colors(self.color_jitter, generator))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def val(self, data: bytes) -> np.ndarray:
        """Centre crop: short side to size / crop_fraction, and the middle of that, in one step."""
        with pillow_errors():
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            side = min(width, height) * self.crop_fraction
            left, top = (width - side) / 2, (height - side) / 2
            image = self._resized(data, image, (left, top, left + side, top + side))
        return _pixels(image) if isinstance(image, torch.Tensor) else np.asarray(image)

    def _resized(
        self, data: bytes, image: Image.Image, box: tuple[float, float, float, float]
    ) -> Image.Image | torch.Tensor:
        """The part of an image in `box`, resized; the image is not decoded yet. From torch: uint8 [3, size, size]."""
        width, height = image.size
        plain = image.format == "JPEG" and image.mode in ("RGB", "L")
        least = min(box[2] - box[0], box[3] - box[1]) / self.size
        if least >= 2:  # Pillow can decode at 1/2, 1/4 or 1/8, which costs less; what is left is enough for the crop
            image.draft(None, (int(width / least), int(height / least)))
        elif plain and self.decode == "torchcodec":
            left, top, right, bottom = whole(box)
            return self._by_torch(decode_jpeg(data)[:, top:bottom, left:right])
        across, down = image.size[0] / width, image.size[1] / height
        box = (box[0] * across, box[1] * down, min(box[2] * across, image.size[0]), min(box[3] * down, image.size[1]))
        if image.mode != "RGB":  # grey, CMYK, palette
            image = to_rgb(image)
        if self.resize == "torch":
            return self._by_torch(torch.from_numpy(np.array(image.crop(whole(box)))).permute(2, 0, 1))
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)

    def _by_torch(self, crop: torch.Tensor) -> torch.Tensor:
        """uint8 [3, H, W]; torch, on CPUs with AVX2, resizes in half of Pillow's time."""
        size = self.size, self.size
        return torch.nn.functional.interpolate(crop[None], size, mode="bilinear", antialias=True)[0]


def _pixels(image: torch.Tensor) -> np.ndarray:
    return torch.stack(tuple(image), -1).numpy()  # in half the time that it takes a permuted tensor to be put in order


def whole(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """In whole pixels, one at the least: torch resizes no parts of them."""
    left, top, right, bottom = (round(edge) for edge in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def drawn_crop(width: int, height: int, min_area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part of an image, of at least `min_area` of it and of ratio 3/4 to 4/3.

    To the bit what torchvision's RandomResizedCrop draws; workers do without torchvision, whose import takes seconds.
    """
    for _ in range(10):
        area = width * height * _uniform(min_area, 1.0, generator)
        ratio = torch.exp(torch.empty(1).uniform_(*LOG_RATIO, generator=generator)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return left, top, w, h
    w = min(width, round(height * RATIO[1]))  # an image so long that nothing fits: its middle
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def drawn_colors(strength: float, generator: torch.Generator) -> tuple[list[int], tuple[float, ...]]:
    """The order and the factors of brightness, contrast and saturation, as torchvision's ColorJitter draws them."""
    order = torch.randperm(4, generator=generator).tolist()  # the fourth is hue, which stays
    return order, tuple(_uniform(max(0.0, 1 - strength), 1 + strength, generator) for _ in range(3))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def jittered(image: Image.Image, order: list[int], factors: tuple[float, ...]) -> Image.Image:
    """torchvision's ColorJitter with what was drawn, to the bit, in less time.

    Brightness and contrast do the same to each pixel of a value: it is worked out once for each of the 256.
    """
    for number in order:
        if number == 0:
            image = _towards(image, 0, factors[0])
        elif number == 1:
            image = _towards(image, _mean(image.convert("L")), factors[1])
        elif number == 2:
            image = ImageEnhance.Color(image).enhance(factors[2])
    return image


def jittered_tensor(image: torch.Tensor, order: list[int], factors: tuple[float, ...]) -> torch.Tensor:
    """`jittered` of uint8 [3, H, W], in a third of the time: at most 3 of 255 away, where Pillow rounds.

    torchvision's on tensors takes twice as long, and workers do without its import.
    """
    x = image.float().contiguous()
    for number in order:
        if number == 3:
            continue
        if number == 0:
            x.mul_(factors[0])
        else:
            grey = (GREY @ x.view(3, -1)).view(x.shape[1:])
            x.lerp_(grey.mean() if number == 1 else grey, 1 - factors[number])
        x.clamp_(0, 255).floor_()  # as of pixels in bytes
    return x.short().byte()  # in a quarter of the time of x.byte()


def _mean(image: Image.Image) -> int:
    return int(np.dot(image.histogram(), range(256)) / (image.width * image.height) + 0.5)


def _towards(image: Image.Image, grey: int, factor: float) -> Image.Image:
    return image.point(Image.blend(Image.new("L", RAMP.size, grey), RAMP, factor).tobytes() * 3)


def draw_of(seed: int, epoch: int, index: int) -> int:
    """The seed of one image's augmentation in one epoch."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, epoch, index), digest_size=8).digest()
    return int.from_bytes(digest, "little")
