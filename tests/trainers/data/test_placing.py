"""Where a whole picture lies on its square, and that boxes and masks find the way there and back."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from strategies import IGNORED, ConfigError
from trainers.data import Preprocessing, centred, decode
from trainers.data.pixels.decoding import upright_size

SIZES = st.integers(1, 300)
SIDES = st.integers(8, 128)


@given(SIZES, SIZES, SIDES)
def test_the_longest_side_fills_the_square_and_the_rest_lies_in_its_middle(width, height, side):
    placing = centred(width, height, side)
    assert max(placing.columns, placing.rows) == side
    assert min(placing.columns, placing.rows) >= 1
    for length, offset in zip((placing.columns, placing.rows), placing.offset, strict=True):
        assert 0 <= (side - length) - 2 * offset <= 1
    for length, own in ((placing.columns, width), (placing.rows, height)):
        assert abs(length - own * side / max(width, height)) <= 0.5 or length == 1


@given(SIZES, SIZES, SIDES, st.data())
def test_boxes_go_to_the_square_and_back_unchanged(width, height, side, data):
    placing = centred(width, height, side)
    corner = st.tuples(st.floats(0, width), st.floats(0, height))
    boxes = np.array(data.draw(st.lists(st.tuples(corner, corner), max_size=4))).reshape(-1, 4)
    square = placing.boxes_to_square(boxes)
    assert square.shape == boxes.shape
    assert ((square >= -1e-9) & (square <= side + 1e-9)).all()
    np.testing.assert_allclose(placing.boxes_to_picture(square), boxes, atol=1e-9 * max(width, height))


@given(st.integers(1, 64), st.integers(1, 64), st.data())
def test_masks_that_are_enlarged_go_to_the_square_and_back_unchanged(width, height, data):
    placing = centred(width, height, data.draw(st.integers(max(width, height), 128)))
    # A strip narrower than a pixel is the one thing that is never enlarged; here no side is.
    mask = np.random.default_rng(width * 64 + height).integers(0, 255, (height, width), dtype=np.uint8)
    square = placing.mask_to_square(mask)
    if placing.columns >= width and placing.rows >= height:
        assert np.array_equal(placing.mask_to_picture(square), mask)
    inside = np.zeros(square.shape, bool)
    left, top = placing.offset
    inside[top : top + placing.rows, left : left + placing.columns] = True
    assert (square[~inside] == IGNORED).all()
    assert (square[inside] != IGNORED).all()


@given(SIZES, SIZES, st.integers(1, 64))
def test_a_mask_of_one_class_comes_back_whole_at_any_size(width, height, side):
    placing = centred(width, height, side)
    mask = np.full((height, width), 7, np.uint8)
    assert np.array_equal(placing.mask_to_picture(placing.mask_to_square(mask)), mask)


def quarters(width, height):
    """A picture whose upper left quarter is white and whose rest is grey."""
    values = np.full((height, width, 3), 128, np.uint8)
    values[: height // 2, : width // 2] = 255
    return Image.fromarray(values)


def encoded(image, kind, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (400, 90), (33, 33), (100, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_padded_image_is_whole_and_black_around(width, height, kind, in_chans):
    placing = centred(width, height, 16)
    pixels = decode(encoded(quarters(width, height), kind), Preprocessing(16, in_chans, fit="pad"))
    assert pixels.shape == (in_chans, 16, 16)
    left, top = placing.offset
    inside = np.zeros((16, 16), bool)
    inside[top : top + placing.rows, left : left + placing.columns] = True
    assert (pixels[:, ~inside] == 0).all()
    assert (pixels[:, inside] > 100).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_what_is_turned_by_exif_is_laid_on_the_square_upright(orientation, kind):
    # Of 31 x 20 pixels, so that the black below is one row more than that above.
    picture = Image.fromarray(np.random.default_rng(0).integers(90, 256, (5, 8, 3), dtype=np.uint8))
    content = encoded(picture.resize((31, 20)), kind, orientation)
    turned = Image.open(io.BytesIO(content))
    upright = picture.resize((31, 20))
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.ROTATE_270, Image.Transpose.FLIP_LEFT_RIGHT],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT],
        8: [Image.Transpose.ROTATE_90],
    }.get(orientation, [])
    for turn in turns:
        upright = upright.transpose(turn)
    how = Preprocessing(31, fit="pad")
    assert upright_size(content) == upright.size
    assert upright_size(turned) == upright.size
    difference = np.abs(decode(content, how).astype(int) - decode(upright, how))
    assert difference.max() <= (60 if kind == "JPEG" else 0)
    assert difference.mean() < 5


def test_cropped_pixels_keep_the_key_that_they_had():
    assert "fit" not in Preprocessing(8).key()
    assert Preprocessing(8).key() == Preprocessing(8, fit="crop").key() != Preprocessing(8, fit="pad").key()


def test_another_way_to_fit_is_refused():
    with pytest.raises(ConfigError, match=r"fit: 'padd' is unknown \(did you mean 'pad'\?\)"):
        Preprocessing(8, fit="padd")
