"""The result of every source: images that are not decoded yet, with their labels, names and splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from strategies import DataError
from trainers.data.pixels import read_file

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SHOWN = 10

#: An object's left, top, right and bottom in pixels of the upright image, and the index of its class.
Box: TypeAlias = tuple[float, float, float, float, int]
#: The encoded mask of an image: a file, regions in COCO's format, or an array (H, W).
MaskRef: TypeAlias = Path | bytes | NDArray[np.uint8]
#: A class name, the names of all classes in an image (maybe none), or one number a regression target.
WholeLabel: TypeAlias = str | tuple[str, ...] | tuple[float, ...]
#: The label of a whole image; or its boxes in sorted order (maybe none), or its mask.
Label: TypeAlias = WholeLabel | tuple[Box, ...] | MaskRef


@dataclass(frozen=True, slots=True)
class Part:
    """An encoded image that lies within a larger file, such as a tar archive."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """Image ``index`` of a torchvision data set, which opens it itself."""

    dataset: Any
    index: int


@dataclass(frozen=True, slots=True)
class TableItem:
    """The encoded image in row ``index`` of a Hugging Face data set, whose image column is not decoded."""

    table: Any
    column: str
    index: int


ImageRef: TypeAlias = Path | Part | bytes | NDArray[np.uint8] | DatasetItem | TableItem
#: An encoded image: a file's bytes, an array (H, W) or (H, W, C), or a picture that is already opened.
Content: TypeAlias = bytes | NDArray[np.uint8] | Image.Image


class MaskCodes(Protocol):
    """How the masks of a source encode the class of each pixel."""

    def key(self) -> str:
        """A key for all that the classes depend on besides the mask."""
        ...

    def size(self, content: Content) -> tuple[int, int]:
        """Width and height of a mask in pixels; a DataError with the bare reason if the content is no mask."""
        ...

    def read(self, content: Content) -> NDArray[np.uint8]:
        """Class indices (H, W), ``IGNORED`` for pixels without a class; a DataError with the reason if unreadable."""
        ...

    def names(self, largest: int) -> tuple[str, ...]:
        """Names of the classes; ``largest`` is the largest class index in all masks."""
        ...


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of columns or fields; None stands for the source's usual name.

    Args:
        image: Path or encoded image.
        label: Class, several classes in one cell, or a number; or several columns: one 0/1 column a class of a
            multi-label set, one number a regression target.
        split: Train, val or test.
        group: Images of one group (a patient, a scene) stay in one split.
    """

    image: str | None = None
    label: str | tuple[str, ...] | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the images are, and what is to be learnt from them, as the user says; a source reads the fields it needs.

    Args:
        task: ``classification``, ``multilabel``, ``regression``, ``segmentation`` or ``detection``; decides the kind of
            labels.
        root: Folder of the images.
        masks: Folder of the masks.
        palette: CSV file of the masks' classes.
        ignore_index: The value of pixels in masks that do not count; None if every pixel counts.
        dataset: Name of a data set.
        files: The value of ``data.manifest``, ``data.annotations`` or ``data.shards``, by split; under ``""`` a file of
            no split.
        columns: Names of columns.
    """

    task: str = "classification"
    root: Path | None = None
    masks: Path | None = None
    palette: Path | None = None
    ignore_index: int | None = 255
    dataset: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True, slots=True)
class Found:
    """What a source found, before any image is decoded.

    Args:
        images: (N,) in an order that does not depend on the machine.
        labels: (N,) of one kind, that of the task.
        names: (N,) what a report calls each image.
        splits: (N,) one of :data:`SPLITS`; a split without images is cut from train.
        classes: Class names in the order of their indices, or names of the regression targets, where the source
            knows them; empty if they follow from the labels.
        groups: (N,) group of each image; None without groups.
        codes: How masks are read; None unless labels are masks.
        sizes: (N,) width and height of each image according to the source; None if the source does not say.
        faults: The reason why the labels of an image cannot be used, by the image's position.
        empty: Class folders without images, each with what is in it instead, in words.
        notes: What was passed over, a line each.
        looked_in: Where relative paths of images were looked for, in words; empty if there were none.
    """

    images: Sequence[ImageRef]
    labels: Sequence[Label]
    names: Sequence[str]
    splits: Sequence[str]
    classes: tuple[str, ...] = ()
    groups: Sequence[str] | None = None
    codes: MaskCodes | None = None
    sizes: Sequence[tuple[int, int] | None] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    empty: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    looked_in: str = ""


def fetch(image: ImageRef) -> Content:
    """The encoded content of an image.

    Raises:
        DataError: It cannot be read; the message is the bare reason.
    """
    match image:
        case Path():
            return read_file(image)
        case Part():
            return _read_part(image)
        case DatasetItem():
            return _opened_by_dataset(image)
        case TableItem():
            return _from_table(image)
        case _:
            return image


def _read_part(part: Part) -> bytes:
    try:
        with part.path.open("rb") as archive:
            archive.seek(part.offset)
            content = archive.read(part.size)
    except OSError as error:
        raise DataError(error.strerror or type(error).__name__) from error
    if not content:
        raise DataError("empty file (0 bytes)")
    if len(content) != part.size:
        raise DataError(f"the archive ends after {len(content):,} of its {part.size:,} bytes")
    return content


def _opened_by_dataset(item: DatasetItem) -> Image.Image:
    try:
        picture = item.dataset[item.index][0]
    except Exception as error:
        # The data set opens the file itself, and Pillow raises errors of any kind on a bad file.
        raise DataError(f"{type(error).__name__}: {error}") from error
    assert isinstance(picture, Image.Image)
    return picture


def _from_table(item: TableItem) -> bytes:
    cell = item.table[item.index][item.column]
    if cell is not None and cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    if cell is None or cell.get("path") is None:
        raise DataError("no image in this row")
    return read_file(Path(cell["path"]))


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key by which ``class2`` comes before ``class10``."""
    # re.split with a group alternates text and digits, so that like is compared with like.
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], name


def listing(lines: Sequence[str], most: int = SHOWN) -> str:
    """The first lines, indented, and how many more there are."""
    shown = "".join(f"\n  {line}" for line in lines[:most])
    more = len(lines) - most
    return shown + (f"\n  ... and {more:,} more" if more > 0 else "")


def quoted(names: Iterable[str]) -> str:
    """Names in natural order, each in quotes, the first :data:`SHOWN` of them."""
    ordered = sorted(names, key=natural)
    more = len(ordered) - SHOWN
    return ", ".join(repr(name) for name in ordered[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
