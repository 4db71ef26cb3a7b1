"""Augmentation levels, applied to whole batches on the device."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.augmentation.draws import Draws, shares


@dataclass(frozen=True, slots=True)
class Level:
    """The limits within which a level changes images; the defaults change nothing.

    Args:
        crop_area: Least share of the image's area that is kept, with sides of 3:4 to 4:3; 1 keeps the image whole.
        flip: Share of images that are mirrored left to right.
        rotate: Largest rotation either way, in degrees.
        colour: Largest relative change of brightness and of contrast, at most 1.
        saturation: Largest relative change of saturation, at most 1; only for images of three channels.
        hue: Largest turn of hues either way, in degrees of the colour circle; only for images of three channels.
        erase: Share of images in which a rectangle is blanked (Zhong et al. 2020).
    """

    crop_area: float = 1.0
    flip: float = 0.0
    rotate: float = 0.0
    colour: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase: float = 0.0


LEVELS: dict[str, Level] = {
    "light": Level(crop_area=0.8),
    "medium": Level(crop_area=0.6, flip=0.5, colour=0.2),
    "strong": Level(crop_area=0.35, flip=0.5, rotate=15.0, colour=0.4, erase=0.25),
}

# From red, green and blue to luminance and two coordinates of colour (YIQ); the direction of these two is the hue.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB: Tensor = torch.linalg.inv(_YIQ)


def augment(images: Tensor, level: str | Level, draws: Draws) -> Tensor:
    """Change each image at random, independently, within the level's limits.

    Args:
        images: (N, C, H, W) float in [0, 1].
        level: ``"none"``, a key of :data:`LEVELS`, or other limits.
        draws: Source of the random numbers; a CPU generator gives the same changes on every device.

    Returns:
        (N, C, H, W) float in [0, 1], on the device of ``images``.
    """
    limits = limits_of(level)
    theta = draw_moves(len(images), limits, draws)
    if theta is not None:
        images = sampled(images, sampling_grid(images, theta)) if resamples(limits) else mirrored(images, theta)
    return repainted(images, limits, draws)


def limits_of(level: str | Level) -> Level:
    """The limits of a level; those of ``"none"`` change and draw nothing."""
    if isinstance(level, Level):
        return level
    return Level() if level == "none" else LEVELS[level]


def resamples(limits: Level) -> bool:
    """Whether the limits need a resampling of pixels, not just a mirrored image."""
    return limits.crop_area < 1 or limits.rotate > 0


def draw_moves(n: int, limits: Level, draws: Draws) -> Tensor | None:
    """Draw crops, mirrorings and rotations.

    Returns:
        (N, 2, 3) float32 on the CPU: affine maps from a place in the changed image to the place in the original image
        that it shows, both in -1 ... 1 from edge to edge. None, and nothing drawn, if the limits move nothing.
    """
    if resamples(limits):
        return _crop_flip_rotate(n, limits, draws)
    if not limits.flip:
        return None
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, 0, 0] = _mirroring(n, limits, draws)
    return theta


def mirrored(images: Tensor, theta: Tensor) -> Tensor:
    """Images (N, C, H, W), mirrored left to right where ``theta`` from :func:`draw_moves` says so."""
    return torch.where(_per_image(theta[:, 0, 0] < 0, images), images.flip(3), images)


def sampling_grid(images: Tensor, theta: Tensor) -> Tensor:
    """The place each pixel of images (N, C, H, W) moved by ``theta`` comes from, (N, H, W, 2) for ``grid_sample``."""
    theta = theta.to(images.device, images.dtype, non_blocking=True)
    return F.affine_grid(theta, list(images.shape), align_corners=False)


def sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Images (N, C, H, W) sampled at the places of a grid; beyond their edges they are reflected."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def repainted(images: Tensor, limits: Level, draws: Draws) -> Tensor:
    """Images (N, C, H, W) in [0, 1] with changed colours and erased rectangles; nothing is moved."""
    if limits.colour:
        images = _jitter(images, limits.colour, draws)
    if (limits.saturation or limits.hue) and images.shape[1] == 3:
        images = _tint(images, limits, draws)
    if limits.erase:
        images = _erase(images, limits.erase, draws)
    return images


def _uniform(n: int, low: float, high: float, draws: Draws) -> Tensor:
    return shares(n, draws) * (high - low) + low


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Values (N,) as (N, 1, 1, 1) on the images' device, copied without waiting for it."""
    return values.to(images.device, non_blocking=True)[:, None, None, None]


def _mirroring(n: int, limits: Level, draws: Draws) -> Tensor:
    """-1 for an image that is mirrored left to right, else 1, (N,) float32."""
    return torch.where(shares(n, draws) < limits.flip, -1.0, 1.0) if limits.flip else torch.ones(n)


def _crop_flip_rotate(n: int, limits: Level, draws: Draws) -> Tensor:
    area = _uniform(n, limits.crop_area, 1.0, draws)
    reach = math.log(4 / 3) if limits.crop_area < 1 else 0.0
    ratio = torch.exp(_uniform(n, -reach, reach, draws))
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    shift_x = _uniform(n, -1, 1, draws) * (1 - width)
    shift_y = _uniform(n, -1, 1, draws) * (1 - height)
    angle = _uniform(n, -limits.rotate, limits.rotate, draws) * (math.pi / 180)
    mirror = _mirroring(n, limits, draws)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack(
        [
            torch.stack([mirror * width * cos, -height * sin, shift_x], dim=1),
            torch.stack([mirror * width * sin, height * cos, shift_y], dim=1),
        ],
        dim=1,
    )


def _jitter(images: Tensor, amount: float, draws: Draws) -> Tensor:
    n = len(images)
    brightness = _per_image(_uniform(n, 1 - amount, 1 + amount, draws), images)
    contrast = _per_image(_uniform(n, 1 - amount, 1 + amount, draws), images)
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean).clamp(0, 1)


def _tint(images: Tensor, limits: Level, draws: Draws) -> Tensor:
    n = len(images)
    strength = _uniform(n, 1 - limits.saturation, 1 + limits.saturation, draws)
    turn = _uniform(n, -limits.hue, limits.hue, draws) * (math.pi / 180)
    along, across = strength * turn.cos(), strength * turn.sin()
    change = torch.eye(3).repeat(n, 1, 1)
    change[:, 1, 1], change[:, 1, 2] = along, -across
    change[:, 2, 1], change[:, 2, 2] = across, along
    matrix = (_RGB @ change @ _YIQ).to(images.device, images.dtype, non_blocking=True)
    return matrix.bmm(images.flatten(2)).clamp(0, 1).view(images.shape)


def _erase(images: Tensor, share: float, draws: Draws) -> Tensor:
    n, _, height, width = images.shape
    chosen = shares(n, draws) < share
    side = _uniform(n, 0.15, 0.45, draws)
    top, left = _uniform(n, 0, 1, draws) * (1 - side), _uniform(n, 0, 1, draws) * (1 - side)
    # The edges are copied to the device, not the masks: a copy of megabytes waits for the device's pending work.
    bottom = torch.where(chosen, top + side, top)
    edges = torch.stack([top, bottom, left, left + side]).to(images.device, non_blocking=True)[:, :, None]
    rows, columns = ((torch.arange(size) / size).to(images.device, non_blocking=True) for size in (height, width))
    in_rows = (rows >= edges[0]) & (rows < edges[1])
    in_columns = (columns >= edges[2]) & (columns < edges[3])
    hole = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return torch.where(hole, images.mean(dim=(1, 2, 3), keepdim=True), images)


def tta_views(images: Tensor, kind: str) -> list[Tensor]:
    """Views of each image whose predictions are averaged (test-time augmentation; Krizhevsky et al. 2012).

    Args:
        images: (N, C, H, W) float.
        kind: ``"none"`` for the images alone, ``"flip"`` for the images and their mirror images, or ``"crops"`` for the
            images and their four corners, each 7/8 of the sides and enlarged to full size.

    Returns:
        Tensors shaped like ``images``; ``images`` are the first.
    """
    return _VIEWS[kind](images)


def _corners(images: Tensor) -> list[Tensor]:
    size = images.shape[2:]
    height, width = (max(1, round(side * 7 / 8)) for side in size)
    rows, columns = (slice(height), slice(-height, None)), (slice(width), slice(-width, None))
    crops = [images[:, :, r, c] for r in rows for c in columns]
    return [F.interpolate(crop, size=size, mode="bilinear") for crop in crops]


_VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "none": lambda images: [images],
    "flip": lambda images: [images, images.flip(3)],
    "crops": lambda images: [images, *_corners(images)],
}
