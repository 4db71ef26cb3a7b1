"""The one preprocessing of an image, used by training and by the served model alike."""

import importlib
import io
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from strategies import ConfigError, DataError, nearest
from trainers.data.pixels.bands import (
    NPY_MAGIC,
    TIFF_MAGIC,
    Raster,
    array_raster,
    check_pixels,
    is_wide_png,
    is_wide_tiff,
    read_npy,
    read_tiff,
    read_wide_png,
)
from trainers.data.pixels.placing import Placing, centred

Pixels: TypeAlias = NDArray[np.uint8]
#: An encoded image, after a file's bytes are read.
Encoded: TypeAlias = bytes | NDArray[Any] | Image.Image
AnyImage: TypeAlias = str | Path | Encoded

# Raised with every change of the code that changes pixels, so that stored pixels are not taken for new pixels.
_VERSION = 2
_COLOURS = {1: "L", 3: "RGB"}
# A JPEG file is decoded to at least this many times the result's side, which changes its pixels by less than one
# grey level on average; any other image is averaged over blocks to no less than that many times, before the filter.
_DECODED, _AVERAGED = 2, 3
_EXIF_ORIENTATION = 0x0112
# EXIF's numbers for a picture whose width and height change places when it is made upright.
_TURNED = (5, 6, 7, 8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Suffixes of photographs of phones, which Pillow reads with the package pillow-heif alone.
HEIC_SUFFIXES = frozenset({".heic", ".heif"})
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def reads_heic() -> bool:
    """Whether HEIC files can be read: the package pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


if reads_heic():
    importlib.import_module("pillow_heif").register_heif_opener()

# Pillow warns of, for example, half the size that is refused here, or damaged EXIF; both are refused or do no harm.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image of any kind becomes a square of bytes.

    Args:
        image_size: Side of the square in pixels.
        in_chans: 3 for RGB, 1 for grey; any other number for images with exactly that many channels, which are not
            converted.
        max_value: In images of more than 8 bits a channel, this value and all larger values become 255; None for
            65,535.
        fit: "crop" fills the square with the middle of the image; "pad" shows all of it, in the middle of a black
            square.

    Raises:
        ConfigError: A value is not positive, or ``fit`` is neither.
    """

    image_size: int
    in_chans: int = 3
    max_value: float | None = None
    fit: Literal["crop", "pad"] = "crop"

    def __post_init__(self) -> None:
        for name, value in (("data.image_size", self.image_size), ("model.in_chans", self.in_chans)):
            if value < 1:
                raise ConfigError(f"{name}: {value} is not a number from 1 on")
        if self.max_value is not None and not 0 < self.max_value < float("inf"):
            raise ConfigError(f"data.max_value: {self.max_value} is not a number above 0")
        if self.fit not in _FITS:
            raise ConfigError(f"fit: {self.fit!r} is unknown ({nearest(self.fit, _FITS)})")

    def key(self) -> str:
        """A key for all that the pixels depend on besides the image: equal keys give equal pixels."""
        # Cropped pixels keep the key that they had before "pad" existed.
        fit = "" if self.fit == "crop" else f", fit {self.fit}"
        return (
            f"unfreeze {_VERSION}, pillow {PIL.__version__}, image_size {self.image_size}, in_chans {self.in_chans}, "
            f"max_value {self.max_value}{fit}{', heic' if reads_heic() else ''}"
        )


def decode(image: AnyImage, how: Preprocessing) -> Pixels:
    """An image of any usual kind as a square of bytes.

    The EXIF orientation is honoured; of an animation the first frame is taken. For RGB and grey, transparency is laid
    on white, palettes and CMYK become RGB, and colour becomes grey by its luma. More than 8 bits a channel are
    scaled to 8. Then the shortest side is resized to ``how.image_size`` (bicubic, antialiased) and the centre is cut
    out; or, if ``how.fit`` is "pad", the longest side is resized and the image laid in the middle of a black square
    (:func:`~trainers.data.pixels.placing.centred`). Large JPEG files are decoded at a fraction of their size, at
    least twice the size of the result.

    Args:
        image: A path, an encoded file's bytes, a Pillow image, or an array (H, W) or (H, W, C). Files may be of
            Pillow's formats, TIFF of any number of bands, and NumPy's ``.npy``.
        how: Size and channels of the result.

    Returns:
        (how.in_chans, how.image_size, how.image_size) uint8, contiguous.

    Raises:
        DataError: The image is not readable or has another number of channels; the message says why and, for a
            path, names it.
    """
    if not isinstance(image, str | Path):
        return to_square(image, how)
    try:
        return to_square(read_file(Path(image)), how)
    except DataError as error:
        raise DataError(f"{image}: {error}") from error


def placed(image: AnyImage, how: Preprocessing) -> Placing:
    """Where an image lies on the square that :func:`decode` makes with ``how.fit`` "pad".

    Raises:
        DataError: The image is not readable.
    """
    content = read_file(Path(image)) if isinstance(image, str | Path) else image
    return centred(*upright_size(content), how.image_size)


def read_file(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        DataError: The file is missing, unreadable, empty or not a regular file; the message is the bare reason.
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


def to_square(content: Encoded, how: Preprocessing) -> Pixels:
    """The part of :func:`decode` after a file's bytes are read.

    Raises:
        DataError: The image is not readable; the message is the bare reason.
    """
    with bad_images_refused():
        image = _read(content)
        # A JPEG file's own size is lost once Pillow is asked for fewer pixels.
        own = image.size if isinstance(image, Image.Image) else None
        # The caller's own picture must keep its size.
        extent = None if image is content else _shrunk(image, how)
        planes, orientation = _planes(image, how)
        fitted = _FITS[how.fit]
        squares = []
        for plane in planes:
            size = own if own is not None and extent is not None else plane.size
            squares.append(fitted(_Sized(plane, extent or plane.size, size), orientation, how))
        return np.concatenate([_channels_first(square, how) for square in squares])


def upright_size(content: Encoded) -> tuple[int, int]:
    """Width and height of the upright image in pixels; for most files only the header is read.

    Raises:
        DataError: The content is not an image; the message is the bare reason.
    """
    with bad_images_refused():
        image = _read(content)
        if isinstance(image, Raster):
            height, width = image.values.shape[:2]
            return (height, width) if image.orientation in _TURNED else (width, height)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow turns the picture while loading, so that its size is then the upright picture's.
            image.load()
            return image.size
        return image.size[::-1] if _orientation(image) in _TURNED else image.size


def channels_of(content: Encoded) -> int:
    """Channels of an image: 1 of grey, 3 of a picture in colours, else the number of its bands.

    Raises:
        DataError: The content is not an image; the message is the bare reason.
    """
    with bad_images_refused():
        image = _read(content)
        if isinstance(image, Raster) and not image.mode:
            return int(image.values.shape[2])
        return 1 if image.mode.startswith(("1", "L", "I", "F")) else 3


@contextmanager
def bad_images_refused() -> Iterator[None]:
    """A context that turns every error on a damaged image into a DataError whose message is the bare reason.

    Raises:
        DataError: The image is bad.
    """
    # Another library may have switched this on, and half an image would pass for a whole image.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError("not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"refused as a possible decompression bomb: {str(error).partition(',')[0]}") from error
    except Exception as error:
        # Pillow's parsers raise errors of many kinds: OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(f"damaged image: {str(error) or type(error).__name__}") from error


def _read(content: Encoded) -> Image.Image | Raster:
    """Open the image; a file of more than 8 bits or of bands, which Pillow would cut down, becomes a raster."""
    if isinstance(content, np.ndarray):
        return array_raster(content)
    if isinstance(content, bytes | bytearray | memoryview):
        return _open(bytes(content))
    if not isinstance(content, Image.Image):
        raise DataError(f"expected a path, bytes, an array or a Pillow image, found {type(content).__name__}")
    return content


def _open(content: bytes) -> Image.Image | Raster:
    if not content:
        raise DataError("empty (0 bytes)")
    if content.startswith(NPY_MAGIC):
        return read_npy(content)
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content.startswith(TIFF_MAGIC):
            return read_tiff(content)
        if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS and not reads_heic():
            raise DataError("a HEIC file, which needs pip install pillow-heif") from None
        raise
    check_pixels(*image.size)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and is_wide_tiff(image):
        return read_tiff(content)
    if is_wide_png(image):
        return replace(read_wide_png(content), orientation=_orientation(image))
    return image


def _shrunk(image: Image.Image | Raster, how: Preprocessing) -> tuple[float, float] | None:
    """Let Pillow decode a JPEG file's blocks to fewer pixels, and for grey only its luma.

    Returns:
        Width and height in the new pixels, which may be fractions: the last column and row may lie half outside. None
        if the image is not a JPEG file.
    """
    if isinstance(image, Raster):
        return None
    columns = rows = how.image_size
    if how.fit == "pad":
        placing = centred(*image.size, how.image_size)
        columns, rows = placing.columns, placing.rows
    drafted = image.draft(_COLOURS.get(how.in_chans), (_DECODED * columns, _DECODED * rows))
    return None if drafted is None else drafted[1][2:]


def _planes(image: Image.Image | Raster, how: Preprocessing) -> tuple[list[Image.Image], int]:
    """8-bit images that have ``how.in_chans`` channels together, and their orientation."""
    if isinstance(image, Image.Image):
        image.load()
        # After loading: Pillow turns a TIFF while loading, and forgets its orientation.
        orientation = _orientation(image)
        if image.mode != "F" and not image.mode.startswith("I"):
            return _picture_planes(image, how), orientation
        image = Raster(np.asarray(image)[:, :, None], "L", orientation)
    if how.in_chans in _COLOURS and image.mode:
        return [_flat(image.picture(how.max_value), how)], image.orientation
    _check_channels(image.values.shape[2], how)
    return image.bands(how.max_value), image.orientation


def _picture_planes(image: Image.Image, how: Preprocessing) -> list[Image.Image]:
    if how.in_chans in _COLOURS:
        return [_flat(image, how)]
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    _check_channels(len(image.getbands()), how)
    return list(image.split())


def _check_channels(channels: int, how: Preprocessing) -> None:
    if channels == how.in_chans:
        return
    plural = "" if channels == 1 else "s"
    hint = f"; model.in_chans={channels} takes them as they are" if how.in_chans in _COLOURS else ""
    raise DataError(f"has {channels} channel{plural}, model.in_chans is {how.in_chans}{hint}")


def _flat(image: Image.Image, how: Preprocessing) -> Image.Image:
    """RGB or grey, without transparency."""
    if image.mode == "La":
        # Pillow does not know this one conversion to RGBA.
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Grey stays grey until it is small.
    return image if image.mode == "L" else image.convert(_COLOURS[how.in_chans])


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        # A damaged EXIF block says nothing about the pixels, and Pillow's parser raises errors of many kinds.
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


@dataclass(frozen=True, slots=True)
class _Sized:
    """Pixels, width and height of the image in them, and width and height of the image in its own pixels."""

    plane: Image.Image
    extent: tuple[float, float]
    own: tuple[int, int]


def _cropped(sized: _Sized, orientation: int, how: Preprocessing) -> Image.Image:
    """Cut and resize in one step, so that a strip of 1 x 100,000 pixels never becomes a huge image."""
    width, height = sized.extent
    side = min(sized.extent)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    size = (how.image_size, how.image_size)
    return _upright(sized.plane.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=_AVERAGED), orientation)


def _padded(sized: _Sized, orientation: int, how: Preprocessing) -> Image.Image:
    """Resize the whole image and lay it on black; upright first, since an odd row of black goes below and right."""
    lying = centred(*sized.own, how.image_size)
    size, box = (lying.columns, lying.rows), (0, 0, *sized.extent)
    inner = sized.plane.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=_AVERAGED)
    upright = _upright(inner, orientation)
    placing = centred(*(sized.own[::-1] if orientation in _TURNED else sized.own), how.image_size)
    square = Image.new(upright.mode, (how.image_size, how.image_size))
    square.paste(upright, placing.offset)
    return square


_FITS: Mapping[str, Callable[[_Sized, int, Preprocessing], Image.Image]] = {"crop": _cropped, "pad": _padded}


def _channels_first(square: Image.Image, how: Preprocessing) -> Pixels:
    values = np.asarray(square.convert("RGB") if how.in_chans == 3 else square)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if values.ndim == 3 else values[None])
