"""Scenes composed of scikit-learn's digits on crops of its photographs, with exact masks and boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainers.data.found import Box, Found, Label, Place
from trainers.data.sources.checks import check_task
from trainers.data.sources.mask_files import FileCodes

SIDE = 64
COUNT = 2_000

_SEED = 20_261_123
_DIGITS = tuple(str(digit) for digit in range(10))
_WITHOUT_DIGITS = 0.08
_MOST_DIGITS = 3
_HEIGHTS = (26, 40)
_MOST_DEGREES = 10.0
# The share of each digit's glyphs that is used, nearest to their mean: scrawled glyphs cannot be told at a glance.
_CLEAN = 0.1
_CROPS = (80, 400)
_MOST_CLUTTER = 4
# Digits are lighter than the pixels that they cover, by at least this many of 255 grey levels.
_CONTRAST = 90.0
# The covered pixels may themselves be of a light digit.
_LIGHTEST = 215.0
# Number of places that are tried for a digit.
_TRIES = 32
# The share of a digit that stays visible beneath digits that are pasted later.
_VISIBLE = 1 / 3
_LUMA = np.asarray([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Scenes:
    """Composed scenes.

    Args:
        images: (N, SIDE, SIDE, 3) uint8.
        masks: (N, SIDE, SIDE) uint8, 0 for the background and 1 + digit.
        boxes: (N,) for each scene the bounds of its digits' visible pixels: left, top, right, bottom and digit, sorted.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    boxes: tuple[tuple[Box, ...], ...]


def find_scenes(place: Place) -> Found:
    """2,000 scenes of 64 x 64 pixels with up to three digits each and other shapes, always the same.

    Some scenes have no digit. For segmentation class 0 is the background and the digits are ten more classes; for
    detection the digits are the ten classes.

    Raises:
        DataError: The task is neither segmentation nor detection.
    """
    check_task(place, "scenes", "segmentation", "detection")
    scenes = make_scenes()
    is_masked = place.task == "segmentation"
    classes = ("background", *_DIGITS) if is_masked else _DIGITS
    labels: list[Label] = list(scenes.masks) if is_masked else list(scenes.boxes)
    return Found(
        images=list(scenes.images),
        labels=labels,
        names=[f"scenes/{k}" for k in range(len(scenes.images))],
        splits=["train"] * len(scenes.images),
        classes=classes,
        codes=FileCodes(tuple(range(len(classes))), known=classes) if is_masked else None,
    )


@cache
def make_scenes() -> Scenes:
    """The scenes; each process composes them once."""
    rng = np.random.default_rng(_SEED)
    photographs, glyphs = _photographs(), _glyphs()
    images = np.empty((COUNT, SIDE, SIDE, 3), np.uint8)
    masks = np.empty((COUNT, SIDE, SIDE), np.uint8)
    boxes: list[tuple[Box, ...]] = []
    for k in range(COUNT):
        images[k], masks[k], found = _scene(rng, photographs, glyphs)
        boxes.append(found)
    return Scenes(images, masks, tuple(boxes))


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_image

    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def _glyphs() -> list[tuple[int, Image.Image]]:
    """The cleanly written digits of scikit-learn, cut out, each with its class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    means = np.stack([digits.images[digits.target == digit].mean(0) for digit in range(10)])
    distances = np.linalg.norm(digits.images - means[digits.target], axis=(1, 2))
    limits = np.asarray([np.quantile(distances[digits.target == digit], _CLEAN) for digit in range(10)])
    clean = distances <= limits[digits.target]
    glyphs = []
    for values, digit in zip(digits.images[clean], digits.target[clean], strict=True):
        rows, columns = (np.flatnonzero((values >= 4).any(axis)) for axis in (1, 0))
        cut = values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        glyphs.append((int(digit), Image.fromarray(np.rint(cut * (255 / 16)).astype(np.uint8))))
    return glyphs


def _scene(
    rng: np.random.Generator, photographs: list[Image.Image], glyphs: list[tuple[int, Image.Image]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[Box, ...]]:
    canvas = np.asarray(_background(rng, photographs), dtype=np.float64)
    # Which digit of the scene each pixel shows; 0 for none.
    owners = np.zeros((SIDE, SIDE), np.int64)
    pasted: list[tuple[int, int]] = []
    wanted = 0 if rng.random() < _WITHOUT_DIGITS else int(rng.integers(1, _MOST_DIGITS + 1))
    for _ in range(wanted):
        digit, glyph = glyphs[rng.integers(len(glyphs))]
        drawn = _drawn(rng, glyph)
        alpha = _placed(rng, drawn, owners > 0)
        solid = alpha >= 0.5
        if _hides(solid, owners, pasted):
            continue
        colour = _colour(rng, canvas[solid])
        canvas += alpha[..., None] * (colour - canvas)
        pasted.append((digit, int(solid.sum())))
        owners[solid] = len(pasted)
    mask = np.asarray([0, *(digit + 1 for digit, _ in pasted)], dtype=np.uint8)[owners]
    return np.rint(canvas).clip(0, 255).astype(np.uint8), mask, tuple(sorted(_boxes(owners, pasted)))


def _background(rng: np.random.Generator, photographs: list[Image.Image]) -> Image.Image:
    """A crop of a photograph, paler or darker, with shapes on it that are no digits."""
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(*_CROPS))
    left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
    crop = photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    grey = Image.new("RGB", crop.size, (int(rng.integers(20, 100)),) * 3)
    background = Image.blend(crop, grey, rng.uniform(0.4, 0.8))
    draw = ImageDraw.Draw(background)
    for _ in range(rng.integers(_MOST_CLUTTER + 1)):
        # Filled, with three corners or more: rings and strokes might pass for 0 and 1.
        x, y, radius = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(3, 12)
        fill = tuple(rng.integers(0, 160, 3).tolist())
        draw.regular_polygon((x, y, radius), int(rng.integers(3, 7)), rotation=int(rng.integers(360)), fill=fill)
    return background


def _drawn(rng: np.random.Generator, glyph: Image.Image) -> NDArray[np.float64]:
    """How much each pixel (h, w) shows of a digit after scaling and turning."""
    height = int(rng.integers(_HEIGHTS[0], _HEIGHTS[1] + 1))
    width = max(height // 4, round(height * glyph.width / glyph.height * rng.uniform(0.92, 1.08)))
    # A margin, so that the digit's edges are smooth too.
    drawn = Image.new("L", (width + 4, height + 4))
    drawn.paste(glyph.resize((width, height), Image.Resampling.BICUBIC), (2, 2))
    angle = rng.uniform(-_MOST_DEGREES, _MOST_DEGREES)
    values = np.asarray(drawn.rotate(angle, Image.Resampling.BICUBIC, expand=True), dtype=np.float64)
    return ((values - 80) / 60).clip(0, 1)


def _placed(rng: np.random.Generator, drawn: NDArray[np.float64], taken: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much each pixel (SIDE, SIDE) of the scene shows of a digit, at the tried place that covers least."""
    height, width = drawn.shape
    places = [tuple(int(rng.integers(SIDE - length + 1)) for length in drawn.shape) for _ in range(_TRIES)]
    windows = np.lib.stride_tricks.sliding_window_view(taken, (height, width))
    # Digits that find room do not overlap; some others do.
    top, left = min(places, key=lambda place: float(drawn[windows[place]].sum()))
    alpha = np.zeros((SIDE, SIDE))
    alpha[top : top + height, left : left + width] = drawn
    return alpha


def _hides(solid: NDArray[np.bool_], owners: NDArray[np.int64], pasted: list[tuple[int, int]]) -> bool:
    """Whether too little would stay visible of a digit pasted before."""
    left = np.bincount(owners[~solid], minlength=len(pasted) + 1)[1:]
    return any(visible < size * _VISIBLE for visible, (_, size) in zip(left, pasted, strict=True))


def _colour(rng: np.random.Generator, covered: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour (3,) that stands out from the pixels (n, 3) beneath it."""
    grey = float((covered @ _LUMA).mean())
    while True:
        colour = rng.uniform(60, 255, 3)
        if float(colour @ _LUMA) >= min(grey + _CONTRAST, _LIGHTEST):
            return colour


def _boxes(owners: NDArray[np.int64], pasted: list[tuple[int, int]]) -> Iterator[Box]:
    for k, (digit, _) in enumerate(pasted, 1):
        rows, columns = np.nonzero(owners == k)
        yield float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1), digit
