"""Where a whole picture lies on the black square that a dense model sees, and the way back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies import IGNORED


@dataclass(frozen=True, slots=True)
class Placing:
    """A picture on a square.

    Args:
        width: Of the upright picture in pixels.
        height: Of the upright picture in pixels.
        side: Of the square in pixels.
        columns: Of the square that the picture fills.
        rows: Of the square that the picture fills.
    """

    width: int
    height: int
    side: int
    columns: int
    rows: int

    @property
    def offset(self) -> tuple[int, int]:
        """Column and row of the square where the picture begins."""
        return (self.side - self.columns) // 2, (self.side - self.rows) // 2

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the square for each of the picture, across and down; equal but for rounding."""
        return self.columns / self.width, self.rows / self.height

    def boxes_to_square(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Boxes (..., 4) as left, top, right, bottom in pixels of the picture, in pixels of the square."""
        return np.asarray(boxes * np.tile(self.scale, 2) + np.tile(self.offset, 2), dtype=np.float64)

    def boxes_to_picture(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Boxes (..., 4) as left, top, right, bottom in pixels of the square, in pixels of the picture."""
        return np.asarray((boxes - np.tile(self.offset, 2)) / np.tile(self.scale, 2), dtype=np.float64)

    def mask_to_square(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Classes (height, width) of the picture, by the nearest pixel; (side, side), outside of it ``IGNORED``."""
        square = np.full((self.side, self.side), IGNORED, dtype=np.uint8)
        left, top = self.offset
        inner = _nearest(mask, self.rows, self.columns)
        square[top : top + self.rows, left : left + self.columns] = inner
        return square

    def mask_to_picture(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Classes (side, side) of the square, by the nearest pixel; (height, width)."""
        left, top = self.offset
        return _nearest(mask[top : top + self.rows, left : left + self.columns], self.height, self.width)


def centred(width: int, height: int, side: int) -> Placing:
    """Place a picture so that its longest side fills the square and it is centred along the other side.

    Args:
        width: Of the upright picture in pixels.
        height: Of the upright picture in pixels.
        side: Of the square in pixels.
    """
    longest = max(width, height)
    return Placing(width, height, side, *(max(1, round(length * side / longest)) for length in (width, height)))


def _nearest(values: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Each new pixel takes the value under its centre."""
    # In whole numbers: a centre that falls between two pixels must not depend on rounding.
    height, width = values.shape
    down, across = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in ((rows, height), (columns, width)))
    return values[np.ix_(down, across)]
