"""Augmentation that moves masks and boxes along with the pixels, for whole batches on the device."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.augmentation.draws import Draws
from strategies.augmentation.levels import (
    Level,
    draw_moves,
    limits_of,
    mirrored,
    repainted,
    resamples,
    sampled,
    sampling_grid,
)
from strategies.loss_facts import IGNORED

# A cut-off box is kept if at least this share of its area stays.
_LEAST_SHARE = 0.25


def augment_with_targets(
    pixels: Tensor, targets: Tensor, kind: Literal["masks", "boxes"], level: str | Level, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Change each image at random within the level's limits, and move its mask or boxes along.

    Pixels equal those of :func:`strategies.augmentation.levels.augment` for the same draws, except that places outside
    the image are black: a reflection would show objects without a box. Erasing leaves targets as they are.

    Args:
        pixels: (N, C, S, S) float in [0, 1].
        targets: (N, S, S) uint8 classes of masks, or (N, M, 5) float32 boxes, each left, top, right, bottom and class,
            in pixels; (0, 0, 0, 0, -1) for no box.
        kind: What the targets are.
        level: ``"none"``, a key of :data:`strategies.augmentation.levels.LEVELS`, or other limits.
        draws: Source of the random numbers; a CPU generator gives the same changes on every device.

    Returns:
        Pixels and targets in the same form. Outside the image, masks are :data:`strategies.IGNORED`. A box becomes the
        upright box around its moved corners, cut off at the edges; if less than a quarter of that area stays, the box
        is dropped.
    """
    limits = limits_of(level)
    theta = draw_moves(len(pixels), limits, draws)
    if theta is not None:
        size = (pixels.shape[2], pixels.shape[3])
        targets = move_boxes(targets, theta, size) if kind == "boxes" else move_masks(targets, theta)
        if resamples(limits):
            grid = sampling_grid(pixels, theta)
            pixels = sampled(pixels, grid).masked_fill(_outside(grid)[:, None], 0.0)
        else:
            pixels = mirrored(pixels, theta)
    return repainted(pixels, limits, draws), targets


def move_masks(masks: Tensor, theta: Tensor) -> Tensor:
    """Masks moved by ``theta``: each pixel takes the class of the pixel nearest to the place that it comes from.

    Args:
        masks: (N, H, W) uint8.
        theta: (N, 2, 3) float32, from :func:`strategies.augmentation.levels.draw_moves`.

    Returns:
        (N, H, W) uint8.
    """
    # Classes are whole numbers up to 255, which fp32 holds exactly.
    classes = masks[:, None].float()
    grid = sampling_grid(classes, theta)
    # With padding, a place just inside the edge has a class even if rounding puts it outside.
    moved = F.grid_sample(classes, grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0]
    return moved.masked_fill(_outside(grid), IGNORED).to(masks.dtype)


def move_boxes(boxes: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """The upright boxes around the moved corners of boxes, cut off at the image's edges.

    Args:
        boxes: (N, M, 5) float32, each left, top, right, bottom and class, in pixels; (0, 0, 0, 0, -1) for none.
        theta: (N, 2, 3) float32 on the CPU, from :func:`strategies.augmentation.levels.draw_moves`.
        size: Height and width of the images in pixels.

    Returns:
        (N, M, 5) float32, each box in its old row; a box of which less than a quarter of the area stays is dropped.
    """
    matrix, offset = (part.to(boxes.device, non_blocking=True) for part in _forward(theta, size))
    left, top, right, bottom, label = boxes.unbind(2)
    corners = torch.stack(
        [torch.stack([left, right, right, left], dim=2), torch.stack([top, top, bottom, bottom], dim=2)], dim=3
    )
    places = (corners[..., None, :] * matrix[:, None, None]).sum(-1) + offset[:, None, None]
    first, last = places.amin(2), places.amax(2)
    edges = torch.tensor([size[1], size[0]], dtype=boxes.dtype).to(boxes.device, non_blocking=True)
    cut_first, cut_last = first.clamp_min(0).minimum(edges), last.clamp_min(0).minimum(edges)
    area, left_over = (last - first).prod(2), (cut_last - cut_first).prod(2)
    stays = (label >= 0) & (left_over > 0) & (left_over >= _LEAST_SHARE * area)
    none = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0], dtype=boxes.dtype).to(boxes.device, non_blocking=True)
    return torch.where(stays[..., None], torch.cat([cut_first, cut_last, label[..., None]], dim=2), none)


def _forward(theta: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The inverse of ``theta``, in pixels: matrices (N, 2, 2) and offsets (N, 2) that give where a place goes.

    The offset is computed first, so that mirroring is exactly the width minus the place.
    """
    half = torch.tensor([size[1], size[0]]) / 2
    inverse = torch.linalg.inv(theta[:, :, :2])
    matrix = half[:, None] * inverse / half
    shift = half * (inverse @ theta[:, :, 2:]).squeeze(2)
    return matrix, half - matrix @ half - shift


def _outside(grid: Tensor) -> Tensor:
    """Which places of a grid (N, H, W, 2) lie beyond the image's edges, (N, H, W)."""
    return (grid.abs() > 1).any(-1)
