"""What the one preprocessing makes of every kind of image."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from strategies import DataError
from trainers.data import decode

RED, HALF_RED = (255, 0, 0), (255, 0, 0, 128)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode, colour, size=(12, 12)):
    return Image.new(mode, size, colour)


def palette(transparent=False):
    image = Image.new("P", (12, 12), 1)
    image.putpalette([0, 0, 0, *RED])
    if transparent:
        image.info["transparency"] = 1
    return image


def grey16(value, dtype="<u2"):
    return Image.fromarray(np.full((12, 12), value, dtype))


COLOURS = {
    "RGB": (plain("RGB", (10, 20, 30)), "PNG", (10, 20, 30)),
    "grey": (plain("L", 77), "PNG", (77, 77, 77)),
    "black and white": (plain("1", 1), "PNG", (255, 255, 255)),
    "RGBA on white": (plain("RGBA", HALF_RED), "PNG", (255, 127, 127)),
    "fully transparent is white": (plain("RGBA", (9, 9, 9, 0)), "PNG", (255, 255, 255)),
    "grey with alpha": (plain("LA", (0, 128)), "PNG", (127, 127, 127)),
    "palette": (palette(), "PNG", RED),
    "palette with transparency": (palette(transparent=True), "PNG", (255, 255, 255)),
    "GIF": (palette(), "GIF", RED),
    "CMYK TIFF": (plain("CMYK", (0, 255, 255, 0)), "TIFF", RED),
    "CMYK JPEG": (plain("CMYK", (0, 255, 255, 0)), "JPEG", RED),
    "WebP": (plain("RGB", RED), "WEBP", RED),
    "BMP": (plain("RGB", (1, 2, 3)), "BMP", (1, 2, 3)),
    "16-bit grey PNG": (grey16(257 * 100), "PNG", (100, 100, 100)),
    "16-bit white": (grey16(65535), "PNG", (255, 255, 255)),
    "16-bit dark is not clipped to white": (grey16(300), "PNG", (1, 1, 1)),
    "16-bit grey TIFF": (grey16(257 * 50), "TIFF", (50, 50, 50)),
    "32-bit grey TIFF in 16-bit range": (grey16(257 * 60, np.int32), "TIFF", (60, 60, 60)),
}


@pytest.mark.parametrize("case", COLOURS)
def test_every_colour_mode_becomes_the_right_rgb(case):
    image, kind, colour = COLOURS[case]
    pixels = decode(encoded(image, kind), 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    tolerance = 3 if kind in {"JPEG", "WEBP"} else 0
    assert np.abs(pixels.reshape(3, -1).T.astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize("suffix", [(), (1,), (3,), (4,)])
def test_an_array_is_decoded_like_the_picture_it_holds(suffix):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, *suffix), dtype=np.uint8)
    picture = Image.fromarray(array[..., 0] if suffix == (1,) else array)
    assert np.array_equal(decode(array, 16), decode(encoded(picture), 16))


def test_path_string_bytes_and_pillow_image_give_the_same_pixels(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8))
    path = tmp_path / "a.png"
    picture.save(path)
    wanted = decode(picture, 16)
    for same in (path, str(path), path.read_bytes()):
        assert np.array_equal(decode(same, 16), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :, 0], upright[:, 12:, 1] = 255, 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(decode(picture, 16), decode(upright, 16))


def test_the_centre_is_cut_from_the_long_side():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (decode(wide, 10) == 200).all()
    assert (decode(wide.transpose(1, 0, 2), 10) == 200).all()


def test_shrinking_averages_instead_of_picking_pixels():
    chequered = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(decode(chequered, 8).astype(int) - 127).max() <= 3


def test_a_long_strip_is_cut_before_it_is_enlarged():
    assert decode(np.zeros((1, 100_000), np.uint8), 64).shape == (3, 64, 64)


def test_a_decompression_bomb_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        bomb = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match="decompression bomb"):
        decode(bomb, 8)


def test_a_truncated_file_is_refused_even_where_another_library_allows_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="truncated"):
        decode(encoded(noise, "JPEG")[:2000], 8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_image():
    picture = encoded(plain("RGB", RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(picture, 8).shape == (3, 8, 8)


BAD = {
    "text": (b"hello, I am no image", "not an image"),
    "no bytes": (b"", "not an image"),
    "float TIFF": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    "32-bit grey": (encoded(grey16(70_000, np.int32), "TIFF"), "do not fit 16 bits"),
    "float array": (np.zeros((4, 4), np.float32), r"found \(4, 4\) float32"),
    "two channels": (np.zeros((4, 4, 2), np.uint8), r"found \(4, 4, 2\) uint8"),
    "channels first": (np.zeros((3, 40, 40), np.uint8), r"expected an array \(H, W\)"),
    "no pixels": (np.zeros((0, 4), np.uint8), r"found \(0, 4\)"),
    "a number": (7, "found int"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_refused_with_the_reason(case):
    image, reason = BAD[case]
    with pytest.raises(DataError, match=reason):
        decode(image, 8)


def test_the_refusal_of_a_file_names_it(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        decode(tmp_path / "gone.png", 8)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: empty file"):
        decode(tmp_path / "empty.png", 8)
