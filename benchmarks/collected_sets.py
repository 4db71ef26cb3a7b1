"""Data sets for collecting learning curves, made of images that packages ship.

Digits and clothes are used as they are. The others are composed: crops of scikit-learn's two photographs, whose class
is the part of the photograph that they show, and digits or clothes laid on such crops.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from search.config import DataConfig
from trainers.data import ImageData, open_data
from trainers.data.sources.idx import read_part

FASHION = Path("/usr/share/datasets/fashion-mnist")
_COLUMNS, _ROWS = 4, 3
# Composed images; an image of a smaller model is read at a smaller size.
_SIDE = 96
_VAL = 200
#: Images of a composed set.
COUNTS = {"train": 1600, "val": _VAL, "test": 100}
Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Data:
    """A data set of a fine-tuning.

    Args:
        name: A key of :data:`SETS`.
        images: Training images at most.
        image_size: Side in pixels.
    """

    name: str
    images: int
    image_size: int

    def open(self, folder: Path) -> ImageData:
        """Read the images; what is composed is written below ``folder`` once."""
        place = SETS[self.name] or {"source": "folder", "root": str(composed(self.name, folder / "sets" / self.name))}
        limits = {"limit_train": self.images, "limit_val": _VAL, "limit_test": 1000}
        config = DataConfig(**place, **limits, image_size=self.image_size, cache=str(folder / "cache"))
        return open_data(task="classification", in_chans=3, **config.model_dump())


#: Where each data set comes from; a set without a place is composed.
SETS: dict[str, dict[str, Any]] = {
    "digits": {"source": "digits"},
    "photographs": {},
    "clothes": {"source": "torchvision", "dataset": "FashionMNIST", "root": str(FASHION)},
    "digits_on_photographs": {},
    "photographs_altered": {},
    "clothes_on_photographs": {},
    "photographs_few_classes": {},
    "digits_uneven": {},
}


def available() -> list[str]:
    """The data sets whose packages are installed."""
    return [name for name in SETS if FASHION.is_dir() or not name.startswith("clothes")]


def composed(name: str, root: Path, counts: Mapping[str, int] = COUNTS) -> Path:
    """Write a composed set, unless it is there: ``root/<split>/<class>/<number>.png``.

    Args:
        name: A key of :data:`SETS` without a place.
        root: The folder.
        counts: Images of each split.
    """
    done = root / "whole"
    if not done.exists():
        rng = np.random.default_rng(list(SETS).index(name))
        for split, count in counts.items():
            for number, (label, pixels) in enumerate(_pictures(name, split, count, rng)):
                file = root / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
        done.touch()
    return root


def _pictures(name: str, split: str, count: int, rng: np.random.Generator) -> Iterator[tuple[str, Picture]]:
    """Labels and pictures of a composed set."""
    photographs = [np.asarray(one, dtype=np.uint8) for one in load_sample_images().images]
    things = None if name.startswith("photographs") else _things("clothes" if "clothes" in name else "digits", split)
    for number in range(count):
        if things is None:
            cells = len(photographs) * _COLUMNS * _ROWS
            cell = number % (cells if "few" not in name else 3) * (1 if "few" not in name else 7)
            pixels = _crop_of_cell(photographs, cell, split, rng)
            yield f"part_{cell}", _altered(pixels, rng) if "altered" in name else pixels
            continue
        classes = sorted(things)
        # Each class of an uneven set has two thirds of the images of the class before.
        weights = np.array([(2 / 3) ** place if "uneven" in name else 1.0 for place in range(len(classes))])
        label = classes[rng.choice(len(classes), p=weights / weights.sum())]
        if number < len(classes):
            label = classes[number]
        thing = things[label][rng.integers(len(things[label]))]
        ground = _crop(photographs[rng.integers(2)], rng) if "on_photographs" in name else None
        yield label, _laid_on(thing, ground, rng)


def _things(kind: str, split: str) -> dict[str, Picture]:
    """Grey pictures by class; those of training, validation and test have none in common."""
    if kind == "clothes":
        images, labels = read_part(FASHION, "train")
        images, labels = images[:6000], labels[:6000]
    else:
        digits = load_digits()
        images, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    quarters = {"train": (0, 1), "val": (2,), "test": (3,)}[split]
    kept = np.isin(np.arange(len(labels)) % 4, quarters)
    return {str(label): images[kept & (labels == label)] for label in np.unique(labels)}


def _crop_of_cell(photographs: list[Picture], cell: int, split: str, rng: np.random.Generator) -> Picture:
    """A crop of one part of a photograph. No pixel is both in a crop of training and in one of validation."""
    photograph, place = photographs[cell // (_COLUMNS * _ROWS)], cell % (_COLUMNS * _ROWS)
    height, width = photograph.shape[0] // _ROWS, photograph.shape[1] // _COLUMNS
    top, left = place // _COLUMNS * height, place % _COLUMNS * width
    left, width = (left, width * 3 // 5) if split == "train" else (left + width * 3 // 5, width * 2 // 5)
    part = photograph[top : top + height, left : left + width]
    return _crop(part, rng, low=40, high=min(part.shape[:2]))


def _crop(picture: Picture, rng: np.random.Generator, low: int = 60, high: int = 200) -> Picture:
    side = int(rng.integers(low, high, endpoint=True))
    top, left = (int(rng.integers(0, length - side, endpoint=True)) for length in picture.shape[:2])
    pixels = np.asarray(Image.fromarray(picture[top : top + side, left : left + side]).resize((_SIDE, _SIDE)))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _altered(pixels: Picture, rng: np.random.Generator) -> Picture:
    """As by a bad camera: colours turned into their opposites, and noise."""
    noisy = 255.0 - pixels + rng.normal(0, 40, pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _laid_on(thing: Picture, ground: Picture | None, rng: np.random.Generator) -> Picture:
    """A thing, at a place and in a size at random, as light on a photograph or on black."""
    canvas = np.zeros((_SIDE, _SIDE, 3)) if ground is None else 0.6 * ground
    side = int(rng.integers(_SIDE // 2, _SIDE, endpoint=True))
    top, left = rng.integers(0, _SIDE - side, size=2, endpoint=True)
    light = np.asarray(Image.fromarray(thing).resize((side, side)), dtype=float)[..., None]
    canvas[top : top + side, left : left + side] += light * rng.uniform(0.5, 1, 3)
    return np.clip(canvas, 0, 255).astype(np.uint8)
