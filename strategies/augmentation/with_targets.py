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

# Of a box that is cut off, the share that must stay for it to be kept.
_LEAST_SHARE = 0.25


def augment_with_targets(
    pixels: Tensor, targets: Tensor, kind: Literal["masks", "boxes"], level: str | Level, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Change each image at random within the level's limits, and its mask or boxes as it was moved.

    Pixels are those that :func:`strategies.augmentation.augment` gives for the same draws, but for places outside the
    image, which are black: a reflection would show what no box holds. Erasing leaves targets as they are.

    Args:
        pixels: (N, C, S, S) float in [0, 1].
        targets: (N, S, S) uint8 classes of masks, or (N, M, 5) float32 boxes, each left, top, right, bottom and class,
            in pixels; (0, 0, 0, 0, -1) where there is none.
        kind: What the targets are.
        level: ``"none"``, a key of :data:`strategies.augmentation.levels.LEVELS`, or limits of the caller's own.
        draws: What decides; a CPU generator gives the same changes on every device.

    Returns:
        Both as they were given, changed. Outside the image, masks are :data:`strategies.IGNORED`. Boxes
        hold what the old ones held, as tightly as upright boxes around their corners can, cut off at the edges; where
        less than a quarter of one stays there is none any more.
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
    """Masks with each pixel's class taken from the nearest pixel of where it comes from.

    Args:
        masks: (N, H, W) uint8.
        theta: (N, 2, 3) float32, as :func:`strategies.augmentation.levels.draw_moves` gives it.

    Returns:
        (N, H, W) uint8.
    """
    # Classes are whole numbers up to 255, which fp32 holds exactly.
    classes = masks[:, None].float()
    grid = sampling_grid(classes, theta)
    # With padding, a place that is inside by a hair has a class whichever way it is rounded.
    moved = F.grid_sample(classes, grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0]
    return moved.masked_fill(_outside(grid), IGNORED).to(masks.dtype)


def move_boxes(boxes: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """The upright boxes around the moved corners of boxes, cut off at the image's edges.

    Args:
        boxes: (N, M, 5) float32, each left, top, right, bottom and class, in pixels; (0, 0, 0, 0, -1) for none.
        theta: (N, 2, 3) float32 on the CPU, as :func:`strategies.augmentation.levels.draw_moves` gives it.
        size: Height and width of the images in pixels.

    Returns:
        (N, M, 5) float32, each box in its old row; none where less than a quarter of its area stays.
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
    """Where a place of the image goes, in pixels: theta the other way round, as matrices (N, 2, 2) and offsets (N, 2).

    Mirroring is a width minus a place to the last digit, since its offset is computed first.
    """
    half = torch.tensor([size[1], size[0]]) / 2
    inverse = torch.linalg.inv(theta[:, :, :2])
    matrix = half[:, None] * inverse / half
    shift = half * (inverse @ theta[:, :, 2:]).squeeze(2)
    return matrix, half - matrix @ half - shift


def _outside(grid: Tensor) -> Tensor:
    """Which places of a grid (N, H, W, 2) lie beyond the image's edges, (N, H, W)."""
    return (grid.abs() > 1).any(-1)
