"""Drawing predictions on images."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Smaller pictures are hard to look at.
_LEAST_SIDE = 192
_GAP = 4
# A share of the colour circle, chosen so that no two of the first colours are alike.
_TURN = 0.618034


def enlarged(image: Tensor) -> Tensor:
    """An image (C, S, S) uint8 as (3, kS, kS), each pixel repeated until a side has some 200; grey stays grey."""
    times = max(1, -(-_LEAST_SIDE // image.shape[-1]))
    large = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return large if large.shape[0] == 3 else large[:1].expand(3, -1, -1).contiguous()


def palette(count: int) -> list[tuple[int, int, int]]:
    """``count`` bright colours."""
    hues = ((k * _TURN) % 1 for k in range(count))
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0)) for hue in hues]  # type: ignore[misc]


def side_by_side(panels: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Panels (3, H, W) uint8 in a row with white between them, as (H, W, 3)."""
    gap = torch.full((3, panels[0].shape[1], _GAP), 255, dtype=torch.uint8)
    row = [part for panel in panels for part in (gap, panel)][1:]
    return torch.cat(row, dim=2).permute(1, 2, 0).contiguous().numpy()
