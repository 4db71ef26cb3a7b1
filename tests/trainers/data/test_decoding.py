"""What the one preprocessing makes of every kind of image."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from strategies import ConfigError, DataError
from trainers.data import Preprocessing, decode

QUADRANTS = ((200, 30, 40), (30, 180, 60), (40, 60, 220), (230, 200, 90))
WHITE = (255, 255, 255)
SIDE = 64
PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"


def quadrants(colours=QUADRANTS):
    """(SIDE, SIDE, C) uint8: one colour in each quarter, row by row."""
    corners = np.array(colours, np.uint8).reshape(2, 2, -1)
    return corners.repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1)


def luma(colours):
    return tuple(round(0.299 * red + 0.587 * green + 0.114 * blue) for red, green, blue in colours)


def seen(pixels):
    """(4, C) the mean colour within each quarter, and how far the furthest pixel is from it."""
    side = pixels.shape[1] // 2
    quarters = [pixels[:, y + 2 : y + side - 2, x + 2 : x + side - 2] for y in (0, side) for x in (0, side)]
    flat = [quarter.reshape(len(pixels), -1).T.astype(float) for quarter in quarters]
    return np.array([colours.mean(0) for colours in flat]), max(np.ptp(colours, axis=0).max() for colours in flat)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode="RGB", colours=QUADRANTS):
    return Image.fromarray(quadrants(colours)).convert(mode)


def see_through():
    """RGBA whose third quarter is wholly, and last one half transparent."""
    return Image.fromarray(
        quadrants([(*colour, alpha) for colour, alpha in zip(QUADRANTS, (255, 255, 0, 128), strict=True)])
    )


SEEN_THROUGH = (*QUADRANTS[:2], WHITE, tuple(255 - (255 - part) * 128 // 255 for part in QUADRANTS[3]))
GREYS = tuple((value, value, value) for value in luma(QUADRANTS))
BLUES = tuple((blue, blue, blue) for _, _, blue in SEEN_THROUGH)
BLACK_AND_WHITE = ((0, 0, 0), WHITE, WHITE, (0, 0, 0))


def with_key_colour(kind):
    image = picture().quantize(4, dither=Image.Dither.NONE)
    key = image.getpixel((0, 0))
    return encoded(image, kind, transparency=key)


def with_translucent_palette():
    image = picture().quantize(4, dither=Image.Dither.NONE)
    alphas = bytearray(256)
    for corner, alpha in (((0, 0), 255), ((SIDE - 1, 0), 255), ((0, SIDE - 1), 0), ((SIDE - 1, SIDE - 1), 128)):
        alphas[image.getpixel(corner)] = alpha
    return encoded(image, transparency=bytes(alphas))


def grey_with_alpha():
    grey = see_through().getchannel("A")
    return Image.merge("LA", [picture("L"), grey])


def premultiplied():
    return np.asarray(see_through().convert("RGBa"))


def chunk(kind, content):
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(width, height, bits, colour, rows):
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(values):
    """A real PNG of (H, W, 2 to 4) uint16."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, {2: 4, 3: 2, 4: 6}[values.shape[2]], rows)


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return buffer.getvalue()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def wide(values):
    """8 bits as 16."""
    return np.asarray(values).astype(np.uint16) * 257


KINDS = {
    "JPEG": (encoded(picture(), "JPEG", quality=95), QUADRANTS, 3),
    "progressive JPEG": (encoded(picture(), "JPEG", quality=95, progressive=True), QUADRANTS, 3),
    "JPEG without subsampling": (encoded(picture(), "JPEG", quality=95, subsampling=0), QUADRANTS, 3),
    "large JPEG": (encoded(picture().resize((1024, 1024), 0), "JPEG", quality=95), QUADRANTS, 3),
    "grey JPEG": (encoded(picture("L"), "JPEG", quality=95), GREYS, 2),
    "CMYK JPEG": (encoded(picture("CMYK"), "JPEG", quality=95), QUADRANTS, 5),
    "large CMYK JPEG": (encoded(picture("CMYK").resize((1024, 1024), 0), "JPEG", quality=95), QUADRANTS, 5),
    "PNG": (encoded(picture()), QUADRANTS, 0),
    "RGBA PNG": (encoded(see_through()), SEEN_THROUGH, 1),
    "grey PNG": (encoded(picture("L")), GREYS, 0),
    "grey PNG with alpha": (
        encoded(grey_with_alpha()),
        (*GREYS[:2], WHITE, tuple(255 - (255 - part) * 128 // 255 for part in GREYS[3])),
        1,
    ),
    "palette PNG": (encoded(picture().quantize(4, dither=Image.Dither.NONE)), QUADRANTS, 0),
    "palette PNG with a transparent colour": (with_key_colour("PNG"), (WHITE, *QUADRANTS[1:]), 0),
    "palette PNG with translucent colours": (with_translucent_palette(), SEEN_THROUGH, 1),
    "RGB PNG with a transparent colour": (
        encoded(picture(), transparency=QUADRANTS[0]),
        (WHITE, *QUADRANTS[1:]),
        0,
    ),
    "1-bit PNG": (encoded(picture("1", BLACK_AND_WHITE)), BLACK_AND_WHITE, 0),
    "16-bit grey PNG": (encoded(Image.fromarray(wide(quadrants(GREYS)[:, :, 0]))), GREYS, 0),
    "16-bit grey PNG with alpha": (
        png16(wide(np.asarray(grey_with_alpha()))),
        (*GREYS[:2], WHITE, tuple(255 - (255 - part) * 128 // 255 for part in GREYS[3])),
        1,
    ),
    "16-bit RGB PNG": (png16(wide(quadrants())), QUADRANTS, 0),
    "16-bit RGBA PNG": (png16(wide(np.asarray(see_through()))), SEEN_THROUGH, 1),
    "lossy WebP": (encoded(picture(), "WEBP", quality=95), QUADRANTS, 5),
    "lossless WebP": (encoded(picture(), "WEBP", lossless=True), QUADRANTS, 0),
    "WebP with alpha": (encoded(see_through(), "WEBP", lossless=True), SEEN_THROUGH, 1),
    "GIF": (encoded(picture().quantize(4, dither=Image.Dither.NONE), "GIF"), QUADRANTS, 0),
    "GIF with a transparent colour": (with_key_colour("GIF"), (WHITE, *QUADRANTS[1:]), 0),
    "animated GIF": (
        encoded(picture().quantize(4), "GIF", save_all=True, append_images=[picture("L").convert("P")]),
        QUADRANTS,
        0,
    ),
    "BMP": (encoded(picture(), "BMP"), QUADRANTS, 0),
    "TIFF": (encoded(picture(), "TIFF"), QUADRANTS, 0),
    "LZW TIFF": (encoded(picture(), "TIFF", compression="tiff_lzw"), QUADRANTS, 0),
    "JPEG TIFF": (encoded(picture(), "TIFF", compression="jpeg", quality=95), QUADRANTS, 3),
    "RGBA TIFF": (encoded(see_through(), "TIFF"), SEEN_THROUGH, 1),
    "palette TIFF": (encoded(picture().quantize(4, dither=Image.Dither.NONE), "TIFF"), QUADRANTS, 0),
    "CMYK TIFF": (encoded(picture("CMYK"), "TIFF"), QUADRANTS, 0),
    "1-bit TIFF": (encoded(picture("1", BLACK_AND_WHITE), "TIFF"), BLACK_AND_WHITE, 0),
    "16-bit grey TIFF": (encoded(Image.fromarray(wide(quadrants(GREYS)[:, :, 0])), "TIFF"), GREYS, 0),
    "16-bit TIFF whose white is zero": (
        tiff(65535 - wide(quadrants(GREYS)[:, :, 0]), photometric="miniswhite"),
        GREYS,
        0,
    ),
    "32-bit grey TIFF in 16-bit range": (
        encoded(Image.fromarray(wide(quadrants(GREYS)[:, :, 0]).astype(np.int32)), "TIFF"),
        GREYS,
        0,
    ),
    "16-bit RGB TIFF": (tiff(wide(quadrants()), photometric="rgb"), QUADRANTS, 0),
    "16-bit RGB TIFF that calls itself grey": (tiff(wide(quadrants())), QUADRANTS, 0),
    "16-bit RGBA TIFF": (
        tiff(wide(np.asarray(see_through())), photometric="rgb", extrasamples=["unassalpha"]),
        SEEN_THROUGH,
        1,
    ),
    "premultiplied TIFF": (tiff(premultiplied(), photometric="rgb", extrasamples=["assocalpha"]), SEEN_THROUGH, 2),
    "16-bit premultiplied TIFF": (
        tiff(wide(premultiplied()), photometric="rgb", extrasamples=["assocalpha"]),
        SEEN_THROUGH,
        2,
    ),
    "grey premultiplied TIFF": (tiff(premultiplied()[:, :, 2:], extrasamples=["assocalpha"]), BLUES, 2),
    "16-bit grey premultiplied TIFF": (tiff(wide(premultiplied()[:, :, 2:]), extrasamples=["assocalpha"]), BLUES, 2),
    "16-bit CMYK TIFF": (tiff(wide(np.asarray(picture("CMYK"))), photometric="separated"), QUADRANTS, 0),
    "16-bit RGB TIFF of separate planes": (
        tiff(wide(quadrants()).transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        QUADRANTS,
        0,
    ),
    "grey array": (quadrants(GREYS)[:, :, 0], GREYS, 0),
    "RGB array": (quadrants(), QUADRANTS, 0),
    "RGBA array": (np.asarray(see_through()), SEEN_THROUGH, 1),
    "npy": (npy(quadrants()), QUADRANTS, 0),
    "npy by columns": (npy(np.asfortranarray(quadrants())), QUADRANTS, 0),
    "16-bit npy": (npy(wide(quadrants())), QUADRANTS, 0),
    "big-endian npy": (npy(wide(quadrants()).astype(">u2")), QUADRANTS, 0),
    "grey npy": (npy(quadrants(GREYS)[:, :, 0]), GREYS, 0),
    "grey npy with an axis of channels": (npy(quadrants(GREYS)[:, :, :1]), GREYS, 0),
}
if features.check("avif"):
    KINDS["AVIF"] = (encoded(picture(), "AVIF", quality=95), QUADRANTS, 4)
    KINDS["AVIF with alpha"] = (encoded(see_through(), "AVIF", quality=95), SEEN_THROUGH, 5)


@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_shows_its_colours(kind, in_chans):
    image, colours, tolerance = KINDS[kind]
    pixels = decode(image, Preprocessing(16, in_chans))
    assert pixels.shape == (in_chans, 16, 16)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    means, spread = seen(pixels)
    wanted = np.array(colours) if in_chans == 3 else np.array(luma(colours))[:, None]
    rounding = 0.5 if in_chans == 1 else 0.0
    assert np.abs(means - wanted).max() <= tolerance + rounding
    assert spread <= 2 * tolerance


BANDS = np.random.default_rng(0).integers(0, 256, (24, 32, 5), dtype=np.uint8)


def band_tiff(values, compression="tiff_lzw"):
    """A TIFF of bands by hand: Pillow lends its compression, and can write no such file."""
    row = Image.frombytes("L", (values.nbytes, 1), values.tobytes())
    with Image.open(io.BytesIO(lent := encoded(row, "TIFF", compression=compression))) as image:
        start, number = image.tag_v2[273][0], image.tag_v2[259]
        strip = lent[start : start + image.tag_v2[279][0]]
    height, width, channels = values.shape
    bits = struct.pack(f"<{channels}H", *[values.itemsize * 8] * channels)
    extra = struct.pack(f"<{channels - 1}H", *[0] * (channels - 1))
    strip += bytes(len(strip) % 2)
    at = 8 + len(strip)
    # fmt: off
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, at), (259, 4, 1, number), (262, 4, 1, 1),
        (273, 4, 1, 8), (277, 4, 1, channels), (278, 4, 1, height), (279, 4, 1, len(strip)),
        (338, 3, channels - 1, at + len(bits)),
    ]
    # fmt: on
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHLL", *tag) for tag in tags) + bytes(4)
    return struct.pack("<2sHL", b"II", 42, at + len(bits) + len(extra)) + strip + bits + extra + table


BAND_FILES = {
    "npy": npy(BANDS),
    "16-bit npy": npy(wide(BANDS)),
    "TIFF": tiff(BANDS),
    "TIFF of separate planes": tiff(BANDS.transpose(2, 0, 1), planarconfig="separate"),
    "16-bit TIFF": tiff(wide(BANDS)),
    "16-bit TIFF of separate planes": tiff(wide(BANDS).transpose(2, 0, 1), planarconfig="separate"),
    "big-endian TIFF": tiff(wide(BANDS), byteorder=">"),
    "BigTIFF": tiff(wide(BANDS), bigtiff=True),
    "tiled TIFF": tiff(wide(BANDS), tile=(16, 16)),
    "TIFF of short strips": tiff(wide(BANDS), rowsperstrip=7),
    "deflated TIFF": tiff(wide(BANDS), compression="zlib"),
    "deflated TIFF with differences": tiff(wide(BANDS), compression="zlib", predictor=2),
    "deflated tiles of separate planes": tiff(
        wide(BANDS).transpose(2, 0, 1), planarconfig="separate", compression="zlib", predictor=2, tile=(16, 16)
    ),
    "PackBits TIFF": band_tiff(wide(BANDS), "packbits"),
    "LZW TIFF": band_tiff(BANDS),
    "16-bit LZW TIFF": band_tiff(wide(BANDS)),
    "RGB TIFF with two more bands": tiff(BANDS, photometric="rgb", extrasamples=["unspecified"] * 2),
}


@pytest.mark.parametrize("kind", BAND_FILES)
def test_bands_are_taken_as_they_are_in_the_order_of_the_file(kind):
    pixels = decode(BAND_FILES[kind], Preprocessing(24, 5))
    assert np.array_equal(pixels, BANDS[:, 4:28].transpose(2, 0, 1))


FOUR = np.random.default_rng(1).integers(0, 256, (24, 24, 4), dtype=np.uint8)
FOURS = {
    "RGBA PNG": encoded(Image.fromarray(FOUR)),
    "16-bit RGBA PNG": png16(wide(FOUR)),
    "RGBA TIFF": encoded(Image.fromarray(FOUR), "TIFF"),
    "16-bit RGBA TIFF": tiff(wide(FOUR), photometric="rgb", extrasamples=["unassalpha"]),
    "TIFF of RGB and a band": tiff(FOUR, photometric="rgb", extrasamples=["unspecified"]),
    "TIFF of RGB and a band, separate": tiff(
        FOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", extrasamples=["unspecified"]
    ),
    "TIFF of four bands": tiff(FOUR),
    "CMYK TIFF": encoded(Image.frombytes("CMYK", (24, 24), FOUR.tobytes()), "TIFF"),
    "npy": npy(FOUR),
    "array": FOUR,
}


@pytest.mark.parametrize("kind", FOURS)
def test_four_channels_are_not_blended_where_four_are_asked_for(kind):
    assert np.array_equal(decode(FOURS[kind], Preprocessing(24, 4)), FOUR.transpose(2, 0, 1))


def test_two_channels_are_grey_and_alpha_as_they_are():
    pair = np.dstack([FOUR[:, :, 0], FOUR[:, :, 1]])
    for image in (Image.fromarray(pair), png16(wide(pair)), pair):
        assert np.array_equal(decode(image, Preprocessing(24, 2)), pair.transpose(2, 0, 1))


def test_bands_are_resized_as_colours_are():
    photograph = np.asarray(Image.open(PHOTOGRAPHS / "flower.jpg"))
    for size in (32, 64, 500):
        colours = decode(photograph, Preprocessing(size))
        # A fourth band makes them bands.
        bands = decode(np.dstack([photograph, photograph[:, :, :1]]), Preprocessing(size, 4))
        assert np.abs(bands[:3].astype(int) - colours).max() <= 1


COUNTS = {
    "JPEG, 5": (encoded(picture(), "JPEG"), 5, "has 3 channels, model.in_chans is 5"),
    "grey PNG, 2": (encoded(picture("L")), 2, "has 1 channel, model.in_chans is 2"),
    "RGB PNG, 4": (encoded(picture()), 4, "has 3 channels, model.in_chans is 4"),
    "palette, 4": (encoded(picture().quantize(4)), 4, "has 3 channels, model.in_chans is 4"),
    "16-bit grey, 4": (
        encoded(Image.fromarray(wide(quadrants(GREYS)[:, :, 0]))),
        4,
        "has 1 channel, model.in_chans is 4",
    ),
    "bands, 4": (tiff(BANDS), 4, "has 5 channels, model.in_chans is 4"),
    "bands, 3": (tiff(BANDS), 3, "has 5 channels, model.in_chans is 3; model.in_chans=5 takes them as they are"),
    "bands, 1": (npy(BANDS), 1, "has 5 channels, model.in_chans is 1; model.in_chans=5 takes them as they are"),
    "RGB and a band, 3": (
        FOURS["TIFF of RGB and a band"],
        3,
        "has 4 channels, model.in_chans is 3; model.in_chans=4 takes them as they are",
    ),
    "four 16-bit bands, 3": (
        npy(wide(FOUR)),
        3,
        "has 4 channels, model.in_chans is 3; model.in_chans=4 takes them as they are",
    ),
    "bands first": (np.zeros((5, 40, 30), np.uint8), 5, "has 30 channels, model.in_chans is 5"),
}


@pytest.mark.parametrize("case", COUNTS)
def test_another_number_of_channels_is_refused(case):
    image, in_chans, reason = COUNTS[case]
    with pytest.raises(DataError) as refusal:
        decode(image, Preprocessing(8, in_chans))
    assert str(refusal.value) == reason


REFLECTANCE = np.array([[0, 2500, 5000], [7500, 10_000, 30_000], [39, 40, 9_960]], np.uint16)
SCALED = np.array([[0, 64, 128], [191, 255, 255], [1, 1, 254]], np.uint8)
COLOUR_REFLECTANCE = REFLECTANCE[:, :, None].repeat(3, 2)
BAND_REFLECTANCE = REFLECTANCE[:, :, None].repeat(6, 2)
SCALES = {
    "grey PNG": (encoded(Image.fromarray(REFLECTANCE)), 1),
    "grey TIFF": (encoded(Image.fromarray(REFLECTANCE), "TIFF"), 1),
    "RGB PNG": (png16(COLOUR_REFLECTANCE), 3),
    "RGB TIFF": (tiff(COLOUR_REFLECTANCE, photometric="rgb"), 3),
    "bands": (tiff(BAND_REFLECTANCE), 6),
    "signed bands": (tiff(BAND_REFLECTANCE.astype(np.int16)), 6),
    "32-bit bands": (tiff(BAND_REFLECTANCE.astype(np.uint32)), 6),
    "npy": (npy(BAND_REFLECTANCE), 6),
    "float TIFF": (encoded(Image.fromarray(REFLECTANCE.astype(np.float32)), "TIFF"), 1),
    "64-bit float TIFF": (tiff(REFLECTANCE.astype(np.float64)), 1),
    "float bands": (tiff(BAND_REFLECTANCE.astype(np.float32)), 6),
    "float npy": (npy(BAND_REFLECTANCE.astype(np.float32)), 6),
}


@pytest.mark.parametrize("kind", SCALES)
def test_max_value_becomes_white_and_all_above_it_too(kind):
    image, in_chans = SCALES[kind]
    assert (decode(image, Preprocessing(3, in_chans, 10_000)) == SCALED).all()


def test_max_value_is_nothing_to_8_bits_nor_to_transparency():
    how = Preprocessing(24, max_value=10_000)
    assert np.array_equal(decode(FOUR[:, :, :3], how), FOUR[:, :, :3].transpose(2, 0, 1))
    red = np.zeros((4, 4, 4), np.uint16)
    red[:, :, 0], red[:, :, 3] = 10_000, 0x8000
    assert decode(png16(red), Preprocessing(2, max_value=10_000))[:, 0, 0].tolist() == [255, 127, 127]
    floats = red / np.array([1, 1, 1, 65_535])
    floating = tiff(floats.astype(np.float32), photometric="rgb", extrasamples=["unassalpha"])
    assert decode(floating, Preprocessing(2, max_value=10_000))[:, 0, 0].tolist() == [255, 127, 127]


def test_a_tile_that_the_file_leaves_out_is_black():
    content = tiff(wide(BANDS), tile=(16, 16))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        counts = file.pages.first.tags["TileByteCounts"]
    assert counts.dtype == 3, "two bytes each"
    pixels = decode(claiming(content, counts.valueoffset + 2, "<H", 0), Preprocessing(24, 5))
    wanted = BANDS.copy()
    wanted[:16, 16:] = 0
    assert np.array_equal(pixels, wanted[:, 4:28].transpose(2, 0, 1))


def test_negative_floats_are_black():
    values = np.array([[-1.0, 0.5], [1.0, np.inf]], np.float32)
    assert decode(npy(values), Preprocessing(2, 1, 1.0)).tolist() == [[[0, 128], [255, 255]]]


@given(
    st.sampled_from(["<u2", ">u2", "<i4", "<f4", "<f8"]),
    st.floats(1, 1e6),
    st.lists(st.integers(0, 32_767), min_size=4, max_size=4),
)
def test_scaling_never_wraps_and_keeps_the_order(dtype, max_value, values):
    array = np.sort(np.array(values)).astype(dtype).reshape(2, 2)
    pixels = decode(array, Preprocessing(2, 1, max_value))[0]
    exact = np.minimum(array.astype(float) * 255 / max_value, 255)
    assert np.abs(pixels - exact).max() <= 0.51


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [16, 31, 48, 64, 96, 106])
def test_a_jpeg_decoded_at_a_fraction_of_its_size_looks_as_it_does_in_full(name, size):
    content = (PHOTOGRAPHS / name).read_bytes()
    in_full = decode(Image.open(io.BytesIO(content)).convert("RGB"), Preprocessing(size))
    reduced = decode(content, Preprocessing(size))
    assert not np.array_equal(reduced, in_full)
    assert np.abs(reduced.astype(int) - in_full).mean() < 1.1
    grey = np.asarray(Image.fromarray(in_full.transpose(1, 2, 0)).convert("L"))
    assert np.abs(decode(content, Preprocessing(size, 1))[0].astype(int) - grey).mean() < 1.1


def test_the_callers_picture_keeps_its_size():
    picture = Image.open(PHOTOGRAPHS / "china.jpg")
    decode(picture, Preprocessing(16))
    assert picture.size == (640, 427)


UPRIGHT = np.array(Image.open(PHOTOGRAPHS / "flower.jpg").resize((48, 32)))
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def turned(kind, **options):
    def make(array, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encoded(Image.fromarray(array), kind, exif=exif, **options)

    return make


def turned_large_jpeg(array, orientation):
    return turned("JPEG", quality=95)(array.repeat(10, axis=0).repeat(10, axis=1), orientation)


def turned_wide_png(array, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = png16(wide(array))
    end = content.index(struct.pack(">L", 0) + b"IEND")
    return content[:end] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + content[end:]


def turned_wide_tiff(array, orientation):
    return tiff(wide(array), photometric="rgb", extratags=[(274, 3, 1, orientation, True)])


TURNED = {
    "JPEG": (turned("JPEG", quality=95, subsampling=0), 4),
    "large JPEG": (turned_large_jpeg, 4),
    "PNG": (turned("PNG"), 1),
    "16-bit PNG": (turned_wide_png, 1),
    "WebP": (turned("WEBP", lossless=True), 1),
    "TIFF": (turned("TIFF"), 1),
    "16-bit TIFF": (turned_wide_tiff, 1),
}


@pytest.mark.parametrize("kind", TURNED)
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_honoured(kind, orientation):
    make, tolerance = TURNED[kind]
    pixels = decode(make(np.ascontiguousarray(STORED[orientation]), orientation), Preprocessing(16))
    assert np.abs(pixels.astype(int) - decode(UPRIGHT, Preprocessing(16))).mean() <= tolerance


def test_path_string_bytes_and_pillow_image_give_the_same_pixels(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8))
    path = tmp_path / "a.png"
    picture.save(path)
    wanted = decode(picture, Preprocessing(16))
    content = path.read_bytes()
    for same in (path, str(path), content, bytearray(content), memoryview(content)):
        assert np.array_equal(decode(same, Preprocessing(16)), wanted)


def test_the_centre_is_cut_from_the_long_side():
    long = np.zeros((10, 30, 3), np.uint8)
    long[:, 10:20] = 200
    assert (decode(long, Preprocessing(10)) == 200).all()
    assert (decode(long.transpose(1, 0, 2), Preprocessing(10)) == 200).all()


def test_shrinking_averages_instead_of_picking_pixels():
    chequered = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(decode(chequered, Preprocessing(8)).astype(int) - 127).max() <= 3


def test_a_long_strip_is_cut_before_it_is_enlarged():
    assert decode(np.zeros((1, 100_000), np.uint8), Preprocessing(64)).shape == (3, 64, 64)


def test_a_truncated_file_is_refused_even_where_another_library_allows_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="truncated"):
        decode(BAD["truncated JPEG"][0], Preprocessing(8))


def test_a_damaged_exif_block_does_not_cost_the_image():
    content = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(content, Preprocessing(8)).shape == (3, 8, 8)


def photograph(kind, **options):
    return encoded(Image.open(PHOTOGRAPHS / "flower.jpg").resize((200, 150)), kind, **options)


def half(content):
    return content[: len(content) // 2]


def claiming(content, at, form, *sizes):
    """A real file whose header says another size."""
    return content[:at] + struct.pack(form, *sizes) + content[at + struct.calcsize(form) :]


def jpeg_of(height, width, progressive=False):
    content = photograph("JPEG", progressive=progressive)
    return claiming(content, content.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5, ">HH", height, width)


def webp_of(width, height):
    """In the extended layout the canvas is three bytes each way, one less than its sides."""
    content = photograph("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    at = content.index(b"VP8X") + 12
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return content[:at] + sides + content[at + 6 :]


def tiff_saying(content, **values):
    """The same TIFF with other values in tags that hold one number."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = {name: file.pages.first.tags[name] for name in values}
    for name, tag in tags.items():
        content = claiming(content, tag.valueoffset, {3: "<H", 4: "<L"}[tag.dtype], values[name])
    return content


def npy_claiming(shape, dtype="uint8", content=b""):
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + content


def pickled_npy():
    buffer = io.BytesIO()
    np.save(buffer, np.array([[{"a": 1}, None]], dtype=object), allow_pickle=True)
    return buffer.getvalue()


BOMB = "possible decompression bomb"
BAD = {
    "text": (b"hello, I am no image", "not an image in a known format"),
    "zero bytes": (b"", "empty"),
    "truncated JPEG": (half(photograph("JPEG")), "truncated"),
    "truncated progressive JPEG": (half(photograph("JPEG", progressive=True)), "truncated"),
    "JPEG that ends in its header": (photograph("JPEG")[:100], "damaged image: Truncated File Read"),
    "truncated PNG": (half(photograph("PNG")), "truncated"),
    "PNG without pixels": (photograph("PNG")[:33], "not an image"),
    "truncated 16-bit PNG": (half(png16(wide(UPRIGHT))), "truncated"),
    "truncated WebP": (half(photograph("WEBP")), "damaged image"),
    "truncated GIF": (half(photograph("GIF")), "truncated"),
    "truncated BMP": (half(photograph("BMP")), "truncated"),
    "truncated TIFF": (half(photograph("TIFF")), "truncated"),
    "truncated TIFF of bands": (half(tiff(wide(UPRIGHT).repeat(2, 2))), "truncated"),
    "truncated strip": (tiff_saying(band_tiff(BANDS), StripByteCounts=300), "broken or too short"),
    "TIFF of bands without pixels": (tiff(BANDS)[:40], "damaged image"),
    "PNG that claims 50,000 x 50,000": (png(50_000, 50_000, 8, 2, bytes(1000)), BOMB),
    "PNG that claims 15,000 x 15,000": (png(15_000, 15_000, 1, 0, bytes(1000)), BOMB),
    "JPEG that claims 65,000 x 65,000": (jpeg_of(65_000, 65_000), BOMB),
    "progressive JPEG that claims too much": (jpeg_of(65_000, 65_000, progressive=True), BOMB),
    "WebP that claims 16,000 x 16,000": (webp_of(16_000, 16_000), BOMB),
    "GIF that claims too much": (claiming(photograph("GIF"), 6, "<HH", 65_000, 65_000), BOMB),
    "BMP that claims too much": (claiming(photograph("BMP"), 18, "<ll", 50_000, 50_000), BOMB),
    "TIFF that claims too much": (tiff_saying(photograph("TIFF"), ImageWidth=50_000, ImageLength=50_000), BOMB),
    "TIFF of bands that claims too much": (tiff_saying(band_tiff(BANDS), ImageWidth=50_000, ImageLength=50_000), BOMB),
    "TIFF of many bands": (
        tiff_saying(band_tiff(wide(BANDS)), ImageWidth=13_000, ImageLength=13_000, RowsPerStrip=13_000),
        "more than 1,073,741,824 bytes",
    ),
    "TIFF of bands without its strips": (
        tiff_saying(band_tiff(BANDS), ImageWidth=13_000, ImageLength=13_000),
        "1 strips or tiles of 542",
    ),
    "tile of bands that claims too much": (
        tiff_saying(tiff(wide(BANDS), tile=(32, 32), compression="zlib"), TileWidth=16_000, TileLength=16_000),
        f"{BOMB}: a strip or tile of 2,560,000,000 bytes",
    ),
    "JPEG-compressed bands": (
        tiff_saying(tiff(BANDS, compression="zlib"), Compression=7),
        "JPEG compression is not supported",
    ),
    "TIFF of LAB bands": (tiff_saying(band_tiff(wide(BANDS)), PhotometricInterpretation=8), "CIELAB"),
    "pickled npy": (pickled_npy(), "pickled objects"),
    "npy of 1e12 elements": (npy_claiming((1_000_000, 1_000_000)), "truncated .npy file: .* there are 0"),
    "truncated npy": (half(npy(BANDS)), "truncated .npy file"),
    "npy of negative size": (npy_claiming((-4, 4)), "damaged .npy header"),
    "npy without header": (npy(BANDS)[:20], "damaged .npy header"),
    "npy of an unknown version": (claiming(npy(BANDS), 6, "BB", 9, 9), "damaged .npy header"),
    "npy of complex numbers": (npy(BANDS[:, :, 0].astype(complex)), "complex128"),
    "npy of truth": (npy(BANDS[:, :, 0] > 100), "bool"),
    "npy of records": (npy(np.zeros((4, 4), "u1,u2")), "not supported"),
    "npy of one axis": (npy(BANDS[0, :, 0]), r"expected an array \(H, W\) or \(H, W, C\), found \(32,\) uint8"),
    "npy without pixels": (npy(BANDS[:0]), r"found \(0, 32, 5\)"),
    "float TIFF": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    "32-bit grey": (encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "do not fit 16 bits"),
    "negative grey": (tiff(np.full((4, 4), -7, np.int16)), "-7 to -7 do not fit 16 bits"),
    "float array": (np.zeros((4, 4), np.float32), "floating-point"),
    "no pixels": (np.zeros((0, 4), np.uint8), r"found \(0, 4\)"),
    "a number": (7, "found int"),
}
if features.check("avif"):
    BAD["truncated AVIF"] = (half(photograph("AVIF")), "not an image")


@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_refused_with_the_reason(case, in_chans):
    image, reason = BAD[case]
    with pytest.raises(DataError, match=reason) as refusal:
        decode(image, Preprocessing(8, in_chans))
    # Neither addresses of objects nor two sentences that say the same.
    assert "0x" not in str(refusal.value)
    assert "DOS" not in str(refusal.value)


def test_bombs_are_refused_where_another_library_has_switched_pillows_own_check_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match=f"{BOMB}: 50,000 x 50,000 pixels"):
        decode(BAD["PNG that claims 50,000 x 50,000"][0], Preprocessing(8))


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        decode(np.array([[0.0, np.nan]], np.float32), Preprocessing(2, 1, 1.0))


_MEASURE = """
import json, resource, sys, time
from pathlib import Path
from strategies import DataError
from trainers.data import Preprocessing, decode
import tifffile
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300 * 2**20,) * 2)
outcomes = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        decode(path, Preprocessing(8, 5 if "bands" in path.name else 1))
        outcome = "decoded"
    except DataError as error:
        outcome = "refused"
    outcomes[path.name] = (outcome, time.process_time() - start)
print(json.dumps(outcomes))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is bounded on Linux only")
def test_neither_bombs_nor_damage_take_time_or_memory_and_nobody_is_warned(tmp_path):
    files = {name: content for name, (content, _) in BAD.items() if isinstance(content, bytes)}
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(bytes(2**20)) for _ in range(500)), packer.flush()])
    bomb = tiff(BANDS, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(bomb)) as file:
        tags = file.pages.first.tags
        offset, count = tags["StripOffsets"].valueoffset, tags["StripByteCounts"].valueoffset
    good = {
        "bands in a strip that swells": claiming(claiming(bomb, offset, "<L", len(bomb)), count, "<L", len(packed))
        + packed,
        "as large as Pillow warns of": png(9_500, 9_500, 1, 0, bytes(9_500 * (1 + -(-9_500 // 8)))),
    }
    for name, content in (files | good).items():
        (tmp_path / name).write_bytes(content)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "always", "-c", _MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "tifffile" not in done.stderr
    outcomes = json.loads(done.stdout)
    assert {name for name, (outcome, _) in outcomes.items() if outcome == "decoded"} == set(good)
    assert max(seconds for name, (_, seconds) in outcomes.items() if name not in good) < 1


def test_the_refusal_of_a_file_names_it(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        decode(tmp_path / "gone.png", Preprocessing(8))
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: empty file"):
        decode(tmp_path / "empty.png", Preprocessing(8))
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"text\.jpg: not an image in a known format"):
        decode(tmp_path / "text.jpg", Preprocessing(8))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"image_size": 0}, "data.image_size: 0"),
        ({"image_size": 8, "in_chans": 0}, "model.in_chans: 0"),
        ({"image_size": 8, "max_value": 0.0}, "data.max_value: 0.0"),
        ({"image_size": 8, "max_value": float("nan")}, "data.max_value: nan"),
        ({"image_size": 8, "max_value": float("inf")}, "data.max_value: inf"),
    ],
)
def test_a_preprocessing_that_makes_no_pixels_is_refused(values, key):
    with pytest.raises(ConfigError, match=key):
        Preprocessing(**values)


def test_the_key_differs_wherever_pixels_may():
    same = {Preprocessing(8).key(), Preprocessing(8, 3).key(), Preprocessing(8, 3, None).key()}
    assert len(same) == 1
    different = [Preprocessing(8), Preprocessing(9), Preprocessing(8, 1), Preprocessing(8, 3, 10_000.0)]
    assert len({how.key() for how in different}) == len(different)
