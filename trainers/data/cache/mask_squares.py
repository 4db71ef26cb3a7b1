"""Masks as squares of class indices, laid as the images are that they belong to."""

from dataclasses import dataclass
from typing import TypeAlias

from trainers.data.found import Content, MaskCodes
from trainers.data.pixels import Pixels, Preprocessing, centred, to_square


@dataclass(frozen=True, slots=True)
class MaskSquares:
    """How a mask becomes a square: in place of a :class:`Preprocessing` where masks are read instead of images.

    Args:
        image_size: Side of the square in pixels.
        codes: How masks say which pixel is of which class.
        in_chans: Of the square.
    """

    image_size: int
    codes: MaskCodes
    in_chans: int = 1

    def key(self) -> str:
        """Names all that the classes depend on besides the mask."""
        return f"masks 1, image_size {self.image_size}, {self.codes.key()}"


Squares: TypeAlias = Preprocessing | MaskSquares


def squared(content: Content, how: Squares) -> Pixels:
    """An image or a mask as a square of bytes, (how.in_chans, how.image_size, how.image_size).

    Raises:
        DataError: It cannot be read; the message is the bare reason.
    """
    if isinstance(how, Preprocessing):
        return to_square(content, how)
    classes = how.codes.read(content)
    height, width = classes.shape
    return centred(width, height, how.image_size).mask_to_square(classes)[None]
