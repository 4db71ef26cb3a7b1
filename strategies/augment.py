"""Augmentation levels, applied to whole batches on the device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Level:
    """How far a level goes.

    Args:
        crop_area: Least share of the image's area that is kept.
        flip: Whether half of the images are mirrored left to right.
        rotate: Largest rotation either way, in degrees.
        colour: Largest relative change of brightness and of contrast.
        erase: Share of images in which a rectangle is blanked (Zhong et al. 2020).
    """

    crop_area: float
    flip: bool
    rotate: float
    colour: float
    erase: float


LEVELS: dict[str, Level] = {
    "light": Level(crop_area=0.8, flip=False, rotate=0.0, colour=0.0, erase=0.0),
    "medium": Level(crop_area=0.6, flip=True, rotate=0.0, colour=0.2, erase=0.0),
    "strong": Level(crop_area=0.35, flip=True, rotate=15.0, colour=0.4, erase=0.25),
}


def augment(images: Tensor, level: str, generator: torch.Generator) -> Tensor:
    """Change each image at random, independently, within the level's limits.

    Args:
        images: (N, 3, H, W) float in [0, 1].
        level: ``"none"`` or a key of :data:`LEVELS`.
        generator: A CPU generator, so that the same seed gives the same changes on every device.

    Returns:
        (N, 3, H, W) float in [0, 1], on the device of ``images``.
    """
    if level == "none":
        return images
    limits = LEVELS[level]
    images = _crop_flip_rotate(images, limits, generator)
    if limits.colour:
        images = _jitter(images, limits.colour, generator)
    if limits.erase:
        images = _erase(images, limits.erase, generator)
    return images


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _crop_flip_rotate(images: Tensor, limits: Level, generator: torch.Generator) -> Tensor:
    n = len(images)
    area = _uniform(n, limits.crop_area, 1.0, generator)
    ratio = torch.exp(_uniform(n, -math.log(4 / 3), math.log(4 / 3), generator))
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    shift_x = _uniform(n, -1, 1, generator) * (1 - width)
    shift_y = _uniform(n, -1, 1, generator) * (1 - height)
    angle = _uniform(n, -limits.rotate, limits.rotate, generator) * (math.pi / 180)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if limits.flip else torch.ones(n)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([mirror * width * cos, -height * sin, shift_x], dim=1),
            torch.stack([mirror * width * sin, height * cos, shift_y], dim=1),
        ],
        dim=1,
    ).to(images.device, images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _jitter(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    n = len(images)
    brightness = _uniform(n, 1 - amount, 1 + amount, generator).to(images.device)[:, None, None, None]
    contrast = _uniform(n, 1 - amount, 1 + amount, generator).to(images.device)[:, None, None, None]
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean).clamp(0, 1)


def _erase(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    chosen = torch.rand(n, generator=generator) < share
    side = _uniform(n, 0.15, 0.45, generator)
    top, left = _uniform(n, 0, 1, generator) * (1 - side), _uniform(n, 0, 1, generator) * (1 - side)
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    in_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + side)[:, None])
    hole = (in_rows[:, :, None] & in_columns[:, None, :] & chosen[:, None, None])[:, None].to(images.device)
    return torch.where(hole, images.mean(dim=(1, 2, 3), keepdim=True), images)
