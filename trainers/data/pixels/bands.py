"""Pixels that Pillow would cut down: more than 8 bits a channel, any number of channels; in NumPy, TIFF and PNG."""

import io
import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from strategies import DataError

if TYPE_CHECKING:
    import tifffile

#: Pictures of more pixels are refused before they are decoded; the limit is Pillow's own default.
MAX_PIXELS = 178_956_970
#: Arrays of more bytes are refused too.
MAX_BYTES = 2**30

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ALPHA = ("LA", "La", "RGBA", "RGBa")
_WHITE_IS_ZERO = 0
_STRAIGHT_ALPHA, _PREMULTIPLIED_ALPHA = 2, 1
# Pillow's modes, by TIFF's photometric interpretation and by the kind of the extra channels.
_TIFF_MODES: dict[int, dict[tuple[int, ...], str]] = {
    0: {(): "L"},
    1: {(): "L", (_STRAIGHT_ALPHA,): "LA", (_PREMULTIPLIED_ALPHA,): "La"},
    2: {(): "RGB", (_STRAIGHT_ALPHA,): "RGBA", (_PREMULTIPLIED_ALPHA,): "RGBa"},
    5: {(): "CMYK"},
}
_TIFF_NOT_COMPRESSED = 1
# LZW, deflate (by two numbers), PackBits, LZMA, Zstandard.
_TIFF_BYTE_COMPRESSIONS = (5, 8, 32946, 32773, 34925, 50000)
_TIFF_ORIENTATION = 274
# Of each 16-bit raw mode of Pillow's PNG reader, the one that takes the lower byte instead of the upper one.
_PNG_LOWER = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_PNG_GREY_ALPHA = "LA;16B"

# The library logs the faults of a file; here such a file is refused with the reason.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels as a file holds them.

    Args:
        values: (H, W, C) of any type.
        mode: The meaning of the channels: Pillow's ``L``, ``RGB``, ``RGBA``, ...; ``""`` for bands that are no colours.
        orientation: How the pixels are turned, by EXIF's number.
    """

    values: NDArray[Any]
    mode: str
    orientation: int = 1

    def picture(self, max_value: float | None) -> Image.Image:
        """An 8-bit picture of a raster that has a mode; transparency is not scaled by ``max_value``.

        Raises:
            DataError: The pixels cannot be scaled.
        """
        limits = [max_value] * self.values.shape[2]
        if self.mode in _ALPHA:
            limits[-1] = 1.0 if self.values.dtype.kind == "f" else None
        planes = [_plane(self.values[:, :, k], limit) for k, limit in enumerate(limits)]
        return planes[0] if len(planes) == 1 else Image.merge(self.mode, planes)

    def bands(self, max_value: float | None) -> list[Image.Image]:
        """The channels as 8-bit pictures, all scaled alike.

        Raises:
            DataError: The pixels cannot be scaled.
        """
        return [_plane(self.values[:, :, k], max_value) for k in range(self.values.shape[2])]


def check_pixels(width: int, height: int) -> None:
    """Refuse a picture that is too large; a file of a few bytes may claim to hold one.

    Raises:
        DataError: The picture has more than :data:`MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise DataError(
            f"refused as a possible decompression bomb: {width:,} x {height:,} pixels are more than {MAX_PIXELS:,}"
        )


def _check_bytes(shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise DataError(f"refused as too large: pixels {tuple(shape)} {dtype} take more than {MAX_BYTES:,} bytes")


def eight_bit(values: NDArray[Any], max_value: float | None) -> NDArray[np.uint8]:
    """Values of any type scaled to 0..255; those of 8 bits as they are.

    Args:
        values: Any shape.
        max_value: This value and all larger values become 255; None for 65,535.

    Raises:
        DataError: Floating-point values without ``max_value``, or values that are no numbers; integers below 0 or,
            without ``max_value``, above 65,535.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise DataError(f"pixels of type {values.dtype} are not supported")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if max_value is None:
            raise DataError("floating-point pixels have no known range; data.max_value says what becomes white")
        if np.isnan(low):
            raise DataError("some pixels are not numbers (NaN)")
    elif low < 0 or (max_value is None and high > 65535):
        raise DataError(f"pixel values {low} to {high} do not fit 16 bits")
    white = max_value or 65535
    # In float32, which holds 16 bits exactly, or in the values' own type if it is more precise.
    exact = values.astype(np.promote_types(values.dtype, np.float32))
    scaled: NDArray[np.uint8] = (np.clip(exact, 0, white) * 255 / white + 0.5).astype(np.uint8)
    return scaled


def _plane(values: NDArray[Any], max_value: float | None) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(eight_bit(values, max_value)))


def array_raster(array: NDArray[Any]) -> Raster:
    """An array (H, W) or (H, W, C): grey, RGB and, of 8 bits, RGBA; other numbers of channels are bands.

    Raises:
        DataError: The array has another number of axes, or no pixels.
    """
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"expected an array (H, W) or (H, W, C), found {array.shape} {array.dtype}")
    _check_bytes(array.shape, array.dtype)
    values = array if array.ndim == 3 else array[:, :, None]
    modes = {1: "L", 3: "RGB"} | ({4: "RGBA"} if array.dtype == np.uint8 else {})
    return Raster(values, modes.get(values.shape[2], ""))


def read_npy(content: bytes) -> Raster:
    """The array of a NumPy file; its pixels are not copied.

    Raises:
        DataError: The header is damaged, claims more bytes than the file has, or says that there are pickled objects.
    """
    file = io.BytesIO(content)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        shape, by_columns, dtype = readers[version](file)
    except (ValueError, KeyError) as error:
        raise DataError("damaged .npy header") from error
    if dtype.hasobject:
        raise DataError("the .npy file holds pickled objects, which are not loaded")
    if min(shape, default=0) < 0:
        raise DataError("damaged .npy header")
    claimed, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if claimed > there:
        raise DataError(f"truncated .npy file: an array {shape} {dtype} has {claimed:,} bytes, there are {there:,}")
    values = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return array_raster(values.reshape(shape, order="F" if by_columns else "C"))


def is_wide_tiff(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow would drop channels or bits of this file, or (16-bit, white is zero) show its negative."""
    channels = len(image.getbands())
    samples = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, channels)
    wide = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    negative = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    return channels != samples or (wide and (samples > 1 or negative))


def read_tiff(content: bytes) -> Raster:
    """The first image of a TIFF file, its bands interleaved or one after the other.

    Raises:
        DataError: The file is damaged, claims too many pixels, holds unknown colours, or is compressed in a way that is
            not for bytes (JPEG, WebP, ...).
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        if page.photometric not in _TIFF_MODES or page.dtype is None:
            colours = tifffile.PHOTOMETRIC(page.photometric).name
            raise DataError(f"TIFF of {colours} pixels of {page.bitspersample} bits is not supported")
        check_pixels(page.imagewidth, page.imagelength)
        _check_bytes(page.shaped, page.dtype)
        separate, _, height, width, together = page.shaped
        values = np.moveaxis(_tiff_values(page, content), 0, -1).reshape(height, width, separate * together)
        mode = _TIFF_MODES[page.photometric].get(tuple(page.extrasamples), "")
        orientation = page.tags.valueof(_TIFF_ORIENTATION, 1)
    if page.photometric == _WHITE_IS_ZERO and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    if not mode or Image.getmodebands(mode) != values.shape[2]:
        # Three bands that the file calls grey may still be colours: GDAL writes 16-bit colours this way.
        mode = {1: "L", 3: "RGB"}.get(values.shape[2], "")
    return Raster(values, mode, orientation)


def _tiff_values(page: "tifffile.TiffPage", content: bytes) -> NDArray[Any]:
    """All strips or tiles put together: (planes, 1, H, W, samples); strips that the file leaves out are zero."""
    if len(page.dataoffsets) != math.prod(page.chunked):
        raise DataError(f"damaged TIFF: {len(page.dataoffsets):,} strips or tiles of {math.prod(page.chunked):,}")
    values: NDArray[Any] = np.zeros(page.shaped, page.dtype)
    compression = page.compression
    # tifffile has no LZW of its own and no bound for deflate; it is used for predictors and byte order.
    page.compression = _TIFF_NOT_COMPRESSED
    for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        _, (plane, _, top, left, _), shape = page.decode(None, index)
        if count == 0:
            continue
        size = math.prod(shape) * values.itemsize
        segment, _, _ = page.decode(_unpacked(content[offset : offset + count], compression, size), index)
        assert segment is not None, "there were data"
        target = values[plane, :, top : top + shape[1], left : left + shape[2]]
        target[...] = segment[:, : target.shape[1], : target.shape[2]]
    return values


def _unpacked(data: bytes, compression: int, size: int) -> bytes:
    """``size`` bytes of a strip or tile; libtiff reads a compressed strip as the only row of a grey image."""
    if compression == _TIFF_NOT_COMPRESSED:
        row = data[:size]
    elif compression in _TIFF_BYTE_COMPRESSIONS:
        if size > MAX_PIXELS:
            raise DataError(f"refused as a possible decompression bomb: a strip or tile of {size:,} bytes")
        tags = {256: size, 257: 1, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
        entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
        padded = data + bytes(len(data) % 2)
        header = struct.pack("<2sHL", b"II", 42, 8 + len(padded))
        file = io.BytesIO(header + padded + struct.pack("<H", len(tags)) + entries + bytes(4))
        try:
            row = Image.open(file).tobytes()
        except OSError as error:
            raise DataError("damaged TIFF: a compressed strip or tile is broken or too short") from error
    else:
        import tifffile

        name = tifffile.COMPRESSION(compression).name
        raise DataError(f"TIFF of more than 8 bits or 4 channels with {name} compression is not supported")
    if len(row) < size:
        raise DataError(f"truncated TIFF file: a strip or tile of {size:,} bytes has {len(row):,}")
    return row


def is_wide_png(image: Image.Image) -> bool:
    """Whether this PNG file has 16 bits a channel and colours or transparency, of which Pillow drops 8 bits."""
    return isinstance(image, PngImagePlugin.PngImageFile) and _raw_mode(image) in {*_PNG_LOWER, _PNG_GREY_ALPHA}


def read_wide_png(content: bytes) -> Raster:
    """All 16 bits of the channels of a PNG file for which :func:`is_wide_png` holds."""
    with Image.open(io.BytesIO(content)) as image:
        raw_mode = _raw_mode(image)
    if raw_mode == _PNG_GREY_ALPHA:
        # Four bytes a pixel, read as four channels.
        both = _png_bytes(content, "RGBA").astype(np.uint16)
        return Raster(both[:, :, ::2] << 8 | both[:, :, 1::2], "LA")
    upper, lower = _png_bytes(content, raw_mode), _png_bytes(content, _PNG_LOWER[raw_mode])
    return Raster(upper.astype(np.uint16) << 8 | lower, raw_mode.partition(";")[0])


def _raw_mode(image: ImageFile.ImageFile) -> Any:
    return image.tile[0].args if image.tile else None


def _png_bytes(content: bytes, raw_mode: str) -> NDArray[np.uint8]:
    """The pixels from Pillow's decoder, if it takes the bytes of the file for pixels of ``raw_mode``."""
    with Image.open(io.BytesIO(content)) as image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        return np.asarray(image)
