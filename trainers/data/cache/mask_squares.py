"""Masks as squares of class indices, placed like the images that they belong to."""

from dataclasses import dataclass
from typing import TypeAlias

from trainers.data.found import Content, MaskCodes
from trainers.data.pixels import Pixels, Preprocessing, centred, to_square


@dataclass(frozen=True, slots=True)
class MaskSquares:
    """How a mask becomes a square: the counterpart of :class:`Preprocessing` for masks.

    Args:
        image_size: Side of the square in pixels.
        codes: How masks encode the class of each pixel.
        in_chans: Channels of the square.
    """

    image_size: int
    codes: MaskCodes
    in_chans: int = 1

    def key(self) -> str:
        """A key for all that the classes depend on besides the mask."""
        return f"masks 1, image_size {self.image_size}, {self.codes.key()}"


Squares: TypeAlias = Preprocessing | MaskSquares


def squared(content: Content, how: Squares) -> Pixels:
    """An image or a mask as a square of bytes, (how.in_chans, how.image_size, how.image_size).

    Raises:
        DataError: The content cannot be read; the message is the bare reason.
    """
    if isinstance(how, Preprocessing):
        return to_square(content, how)
    classes = how.codes.read(content)
    height, width = classes.shape
    return centred(width, height, how.image_size).mask_to_square(classes)[None]
