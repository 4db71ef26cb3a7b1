"""RoI align on small maps by matrix products: the results of torchvision's, in less time on a CPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Products take longer on larger maps, torchvision does not: from a side of about 64 on, products are slower.
_SMALL = 32


class RegionPool(nn.Module):
    """RoI align (https://arxiv.org/abs/1703.06870) over the levels of a pyramid, with one sample a cell.

    A sample is a mean of four places, weighted by hat functions in rows and columns. So a region is a matrix for rows
    times the map times a matrix for columns, and the stacked maps of all levels need one product for all regions of
    an image.

    Args:
        pool: Torchvision's pool, with scales, which assigns boxes to levels; it does the pooling itself if maps are
            large or not on a CPU.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool = pool

    def forward(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Regions of all images, one image after another.

        Args:
            features: (B, C, h, w) float32 of each level, highest resolution first; levels without use are ignored.
            boxes: (R, 4) of each image: left, top, right, bottom in pixels, within the image.
            image_sizes: Height and width of each image.

        Returns:
            (sum of R, C, side, side).
        """
        maps = [features[name] for name in self.pool.featmap_names]
        if maps[0].device.type != "cpu" or max(maps[0].shape[-2:]) > _SMALL:
            pooled: Tensor = self.pool(features, boxes, image_sizes)
            return pooled
        with torch.no_grad():
            levels = self.pool.map_levels(boxes).split([len(of_image) for of_image in boxes])
            weights = [self._weights(*one, maps) for one in zip(boxes, levels, strict=True)]
        width = maps[0].shape[-1]
        stacked = torch.cat([nn.functional.pad(one, (0, width - one.shape[-1])) for one in maps], 2)
        # (B, rows of all levels, columns, channels)
        stacked = stacked.permute(0, 2, 3, 1).contiguous()
        regions = []
        for (rows, columns), of_image in zip(weights, stacked, strict=True):
            strips = (rows.flatten(0, 1) @ of_image.flatten(1)).view(*rows.shape[:2], *of_image.shape[1:])
            regions.append(columns[:, None] @ strips)
        return torch.cat(regions).permute(0, 3, 1, 2)

    def _weights(self, boxes: Tensor, levels: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Weights of the stacked maps' rows in each cell (R, side, rows), and of columns (R, side, columns)."""
        heights = boxes.new_tensor([one.shape[-2] for one in maps])
        widths = boxes.new_tensor([one.shape[-1] for one in maps])
        above = heights.cumsum(0) - heights
        boxes = boxes * boxes.new_tensor(self.pool.scales)[levels][:, None]
        side = self.pool.output_size[0]
        cells = (torch.arange(side, device=boxes.device) + 0.5) / side
        starts, extents = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
        x, y = (starts[..., None] + extents[..., None] * cells).unbind(1)
        rows = _hats(y, heights[levels][:, None], above[levels][:, None], int(heights.sum()))
        columns = _hats(x, widths[levels][:, None], torch.zeros_like(x), maps[0].shape[-1])
        return rows, columns


def _hats(positions: Tensor, sizes: Tensor, offsets: Tensor, count: int) -> Tensor:
    """Weights (..., count) of the two places around each position, on maps of those sizes that begin at the offsets.

    A position up to one place beyond a map has the map's last place; a position further out has no weight.
    """
    placed = torch.minimum(positions.clamp(min=0), sizes - 1) + offsets
    weights = (1 - (placed[..., None] - torch.arange(count, device=positions.device)).abs()).clamp(min=0)
    return weights * (positions <= sizes)[..., None]
