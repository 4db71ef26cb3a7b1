"""The one preprocessing of an image, used by training and by the served model alike."""

import io
import stat
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from strategies import DataError

Pixels: TypeAlias = NDArray[np.uint8]
AnyImage: TypeAlias = str | Path | bytes | NDArray[np.uint8] | Image.Image

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(image: AnyImage, image_size: int) -> Pixels:
    """An image of any usual kind as a square of RGB bytes.

    The EXIF orientation is honoured; transparency is laid on white; 16-bit grey is scaled to 8 bits; grey,
    palette and CMYK become RGB; of an animation the first frame counts. Then the shortest side is resized to
    ``image_size`` (bicubic, antialiased) and the centre cut out.

    Args:
        image: A path, an encoded file's bytes, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) uint8.
        image_size: Side of the result in pixels.

    Returns:
        (3, image_size, image_size) uint8, contiguous.

    Raises:
        DataError: It is not a readable image; the message says why and, for a path, names it.
    """
    try:
        return to_square(_opened(image), image_size)
    except DataError as error:
        if isinstance(image, str | Path):
            raise DataError(f"{image}: {error}") from error
        raise


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        DataError: It is missing, unreadable, empty or not a regular file; the message is the bare reason.
    """
    try:
        # Reading a named pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("a folder, or a link that leads back to one" if path.is_dir() else "not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or type(error).__name__) from error
    if not content:
        raise DataError("empty file (0 bytes)")
    return content


def to_square(image: bytes | NDArray[np.uint8] | Image.Image, image_size: int) -> Pixels:
    """What :func:`decode` does once a file's bytes are read.

    Raises:
        DataError: It is not a readable image; the message is the bare reason.
    """
    # Another library may have switched this on, and half an image would pass for a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        opened = _from_memory(image)
        return _square(_upright(_rgb(opened), _orientation(opened)), image_size)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError("not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"refused as a possible decompression bomb: {error}") from error
    except Exception as error:
        # Pillow's parsers let through what they meet: OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(str(error) or type(error).__name__) from error


def _opened(image: AnyImage) -> bytes | NDArray[np.uint8] | Image.Image:
    return read_file(Path(image)) if isinstance(image, str | Path) else image


def _from_memory(image: bytes | NDArray[np.uint8] | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return Image.open(io.BytesIO(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise DataError(f"expected a path, bytes, an array or a Pillow image, found {type(image).__name__}")


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {1, 3, 4})
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        raise DataError(
            f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, found {array.shape} {array.dtype}"
        )
    grey = array.ndim == 3 and array.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if grey else array))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        # A damaged EXIF block says nothing about the pixels, and Pillow raises whatever its parser meets.
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16 and I), scaled: Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"grey values {values.min()} to {values.max()} do not fit 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _square(image: Image.Image, image_size: int) -> Pixels:
    """Cut and resize in one step, so that a strip of 1 x 100,000 pixels never becomes a huge image."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
