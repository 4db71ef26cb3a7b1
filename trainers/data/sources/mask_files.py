"""Masks in picture files: an index or a colour a class."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from strategies import IGNORED, DataError
from trainers.data.found import SHOWN, Content
from trainers.data.pixels import bad_images_refused, check_pixels

MOST_CLASSES = 255

# By what Pillow multiplies grey values of 2 and 4 bits.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
_FAULT = -1


@dataclass(frozen=True, slots=True)
class FileCodes:
    """What stands for which class in masks that are files, or arrays of indices.

    Args:
        indices: (K,) the index that stands for each class.
        colours: (K,) the colour that does in masks of colours, as 0xRRGGBB; empty where there are none.
        known: (K,) names of the classes; empty where they are called by their index.
        ignored: The index of pixels that do not count.
        ignored_colour: Their colour.
    """

    indices: tuple[int, ...]
    colours: tuple[int, ...] = ()
    known: tuple[str, ...] = ()
    ignored: int | None = IGNORED
    ignored_colour: int | None = None

    def key(self) -> str:
        """Names all that the classes depend on besides the mask."""
        return f"files 1, {self.indices} {self.colours} {self.ignored} {self.ignored_colour}"

    def names(self, largest: int) -> tuple[str, ...]:
        """Names of the classes, those of a palette whether they occur or not."""
        return self.known or tuple(str(index) for index in self.indices[: largest + 1])

    def size(self, content: Content) -> tuple[int, int]:
        """Width and height of a mask in pixels.

        Raises:
            DataError: It is no mask.
        """
        if isinstance(content, np.ndarray):
            return content.shape[1], content.shape[0]
        with bad_images_refused():
            return _opened(content).size

    def read(self, content: Content) -> NDArray[np.uint8]:
        """Class indices (H, W), ``IGNORED`` where a pixel does not count.

        Raises:
            DataError: It is no mask, or holds what stands for no class.
        """
        if isinstance(content, np.ndarray):
            return self._of_indices(content)
        with bad_images_refused():
            image = _opened(content)
            if image.mode in {"RGB", "RGBA"}:
                return self._of_colours(np.asarray(image.convert("RGB"), dtype=np.uint32))
            step = _GREY_STEPS.get(_raw_mode(image), 1)
            return self._of_indices(np.asarray(image).astype(np.uint8) // np.uint8(step))

    def _of_indices(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        table = np.full(256, _FAULT, dtype=np.int16)
        table[list(self.indices)] = np.arange(len(self.indices))
        if self.ignored is not None:
            table[self.ignored] = IGNORED
        classes: NDArray[np.int16] = table[values]
        if (classes == _FAULT).any():
            unknown = np.unique(values[classes == _FAULT]).tolist()
            where = "a row of data.palette" if self.known else f"an index below {MOST_CLASSES}"
            raise DataError(f"its index {_some(list(map(str, unknown)))} is not {where}, nor data.ignore_index")
        return classes.astype(np.uint8)

    def _of_colours(self, values: NDArray[np.uint32]) -> NDArray[np.uint8]:
        if not self.colours:
            raise DataError("its classes are colours; data.palette, a CSV file with name,red,green,blue, names them")
        pixels = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]
        ignored = () if self.ignored_colour is None else (self.ignored_colour,)
        colours = np.asarray((*self.colours, *ignored), dtype=np.uint32)
        classes = np.asarray((*range(len(self.colours)), *(IGNORED for _ in ignored)), dtype=np.uint8)
        order = np.argsort(colours)
        places = order[np.searchsorted(colours[order], pixels).clip(max=len(colours) - 1)]
        wrong = colours[places] != pixels
        if wrong.any():
            unknown = [f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in np.unique(pixels[wrong]).tolist()]
            raise DataError(f"its colour {_some(unknown)} is not in data.palette")
        found: NDArray[np.uint8] = classes[places]
        return found


def _opened(content: Content) -> ImageFile.ImageFile:
    if not isinstance(content, bytes):
        raise DataError(f"is a {type(content).__name__}; masks are PNG files or arrays")
    image = Image.open(io.BytesIO(content))
    check_pixels(*image.size)
    if image.format != "PNG":
        raise DataError(f"is a {image.format} file; masks are PNG, which keeps every index")
    if image.mode not in {"1", "L", "P", "RGB", "RGBA"}:
        raise DataError(f"is of Pillow's mode {image.mode}; masks have indices of 8 bits or less, or colours")
    return image


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file holds its pixels."""
    args = image.tile[0][3] if image.tile else ""
    return args if isinstance(args, str) else ""


def _some(values: Sequence[str]) -> str:
    more = len(values) - SHOWN
    return ", ".join(values[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
