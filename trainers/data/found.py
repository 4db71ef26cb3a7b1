"""What every source hands on: images not yet decoded, with their labels, names and splits."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from strategies import DataError
from trainers.data.decoding import Pixels, read_file, to_square

SPLITS = ("train", "val", "test")
SHOWN = 10


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """Image ``index`` of a torchvision data set."""

    dataset: Any
    index: int


ImageRef: TypeAlias = Path | NDArray[np.uint8] | DatasetItem


@dataclass(frozen=True, slots=True)
class Place:
    """Where the user says the images are; a source reads what it needs of it."""

    root: Path | None
    dataset: str | None
    csv: Path | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a source found, before any image is decoded.

    Args:
        images: (N,) in an order that does not depend on the machine.
        labels: (N,) class names.
        names: (N,) what a report calls each image.
        splits: (N,) one of :data:`SPLITS`; a split that nobody is in is cut from train.
        classes: Class names in the order of their indices.
    """

    images: Sequence[ImageRef]
    labels: Sequence[str]
    names: Sequence[str]
    splits: Sequence[str]
    classes: tuple[str, ...]


def pixels_and_digest(image: ImageRef, image_size: int) -> tuple[Pixels, bytes]:
    """The decoded image, (3, S, S) uint8, and a digest of what it was decoded from.

    Raises:
        DataError: The image is bad; the message is the bare reason.
    """
    if isinstance(image, Path):
        content = read_file(image)
        return to_square(content, image_size), hashlib.blake2b(content, digest_size=16).digest()
    if isinstance(image, DatasetItem):
        picture = _fetch(image)
        return to_square(picture, image_size), _array_digest(np.asarray(picture.convert("RGBA")))
    return to_square(image, image_size), _array_digest(image)


def _fetch(item: DatasetItem) -> Image.Image:
    try:
        picture = item.dataset[item.index][0]
    except Exception as error:
        # The data set opens the file itself, with whatever Pillow raises on a bad one.
        raise DataError(f"{type(error).__name__}: {error}") from error
    assert isinstance(picture, Image.Image)
    return picture


def _array_digest(array: NDArray[np.uint8]) -> bytes:
    shape = repr((array.shape, array.dtype.str)).encode()
    return hashlib.blake2b(shape + array.tobytes(), digest_size=16).digest()


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key by which ``class2`` comes before ``class10``."""
    # re.split with a group alternates text and digits, so that like is compared with like.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], name


def listing(lines: Sequence[str]) -> str:
    """The first :data:`SHOWN` lines, indented, and how many more there are."""
    shown = "".join(f"\n  {line}" for line in lines[:SHOWN])
    more = len(lines) - SHOWN
    return shown + (f"\n  ... and {more:,} more" if more > 0 else "")


def train_classes(labels: Sequence[str], splits: Sequence[str]) -> tuple[str, ...]:
    """The labels seen in train, in natural order."""
    return tuple(sorted({name for name, split in zip(labels, splits, strict=True) if split == "train"}, key=natural))


def quoted(names: Iterable[str]) -> str:
    """Names in natural order, each in quotes, the first :data:`SHOWN` of them."""
    ordered = sorted(names, key=natural)
    more = len(ordered) - SHOWN
    return ", ".join(repr(name) for name in ordered[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def check_found(found: Found) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        DataError: No train images, one class only, a class without train images, or a label unknown to train.
    """
    if not found.images:
        raise DataError("no images were found")
    pairs = set(zip(found.splits, found.labels, strict=True))
    trained = {name for split, name in pairs if split == "train"}
    if not trained:
        raise DataError(f"no train images: all {len(found.images):,} images are in val or test")
    for split in SPLITS[1:]:
        unknown = {name for part, name in pairs if part == split} - trained
        if unknown:
            raise DataError(f"{split} has classes without any image in train: {quoted(unknown)}")
    missing = set(found.classes) - trained
    if missing:
        raise DataError(f"classes without any image in train: {quoted(missing)}")
    if len(found.classes) < 2:
        raise DataError(f"one class only ({quoted(found.classes)}); classification needs at least two")
