"""Targets that depend on more than labels: on decoded masks, or on the place of a picture on its square."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from strategies import IGNORED, DataError
from trainers.data.cache import SIZE_SCOPE, FileIndex, MaskSquares, PixelArray, Progress, Size, read_sizes
from trainers.data.found import Box, Found, ImageRef, Label
from trainers.data.labels import Targets
from trainers.data.pixels import Preprocessing, centred, upright_size
from trainers.data.reading import Read, read_images
from trainers.data.sources import shown
from trainers.data.splitting import Indices

log = logging.getLogger(__name__)

# Masks are stored without regard to the bound of the decoded images: they are small, and targets are in memory anyway.
_NO_BOUND = 2.0**62
# Pixels that a box may reach beyond its image, because tools round, and count pixels from 0 or from 1.
_TOLERANCE = 1.0
_BOX_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Learnt:
    """The targets of the images that were read.

    Args:
        classes: Class names in the order of their indices.
        labels: (N,); equal labels stand for equal targets.
        reasons: The reason why the labels of an image cannot be used, by the image's index.
        values: Gives the targets of the images at some indices, none of which is bad.
    """

    classes: tuple[str, ...]
    labels: Sequence[Label]
    reasons: Mapping[int, str]
    values: Callable[[Indices], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Known:
    """Facts of the images after reading: ``members`` are the good images, ``sizes`` are their sizes by index."""

    found: Found
    targets: Targets
    members: list[int]
    sizes: Mapping[int, Size]
    side: int
    cache: Path
    progress: Progress


def learn(
    found: Found, targets: Targets, members: Indices, read: Read, how: Preprocessing, *, cache: Path, progress: Progress
) -> Learnt:
    """Make the targets of ``members``: read their masks, or place their boxes on the square.

    Args:
        found: All images.
        targets: Of all images.
        members: The images that were read.
        read: The results of reading, by index of the image.
        how: How images are decoded.
        cache: Folder of the file index and the decoded masks.
        progress: Called with the name of the work, the number of finished masks and the number of all masks.

    Raises:
        DataError: The masks cannot be stored, hold one class only, or are all bad.
    """
    if targets.task not in _LEARNERS:
        return Learnt(
            targets.classes, _comparable(found, targets.task), {}, lambda part: targets.values[torch.from_numpy(part)]
        )
    good = [k for k in members.tolist() if k not in read.reasons]
    with closing(FileIndex(cache / "files.sqlite")) as index:
        images = [found.images[k] for k in good]
        sizes = read_sizes(images, [read.samples[k] for k in good], upright_size, SIZE_SCOPE, index)
    reasons = {k: size for k, size in zip(good, sizes, strict=True) if isinstance(size, str)}
    known = {k: size for k, size in zip(good, sizes, strict=True) if not isinstance(size, str)}
    for k in good:
        stated = found.sizes[k] if found.sizes is not None else None
        if k in found.faults:
            reasons[k] = found.faults[k]
        elif k in known and stated is not None and stated != known[k]:
            reasons[k] = f"its labels are for {_in_words(stated)}, the file has {_in_words(known[k])}"
    left = [k for k in good if k not in reasons]
    learnt = _LEARNERS[targets.task](_Known(found, targets, left, known, how.image_size, cache, progress))
    return Learnt(learnt.classes, learnt.labels, reasons | dict(learnt.reasons), learnt.values)


def _comparable(found: Found, task: str) -> Sequence[Label]:
    """Labels in a form in which equal labels are equal values."""
    if task != "multilabel":
        return found.labels
    return [tuple(sorted(map(str, label))) for label in found.labels if isinstance(label, tuple)]


def _in_words(size: Size) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _masks(known: _Known) -> Learnt:
    codes = known.found.codes
    assert codes is not None, "who finds masks says how they are read"
    refs = {k: known.found.labels[k] for k in known.members}
    masks: list[ImageRef] = [mask for mask in refs.values() if not isinstance(mask, str | tuple)]
    how = MaskSquares(known.side, codes)
    read = read_images(masks, how, cache=known.cache, max_bytes=_NO_BOUND, progress=known.progress)
    reasons = {known.members[i]: f"{_name(masks[i])}: {reason}" for i, reason in read.reasons.items()}
    reasons |= _of_other_size(known, masks, read)
    good = [i for i, k in enumerate(known.members) if k not in reasons]
    labels: list[Label] = [""] * len(known.found.images)
    for i in good:
        digest = hashlib.blake2b(codes.key().encode() + read.samples[i], digest_size=8)
        labels[known.members[i]] = f"mask {digest.hexdigest()}"
    array = read.array
    if array is None or not good:
        return Learnt(known.targets.classes, labels, reasons, _no_values)
    if array.check is not None:
        array.check(array.rows[good])
    rows = np.zeros(len(known.found.images), dtype=np.int64)
    rows[known.members] = array.rows
    classes = known.targets.classes or codes.names(_largest(array, good))
    if len(classes) < 2:
        raise DataError(
            f"data.masks: one class only, '{classes[0]}'; segmentation needs two. Where masks mark objects by 255, "
            "data.ignore_index=null and a data.palette with name,index make a class of it"
        )
    return Learnt(classes, labels, reasons, lambda part: torch.from_numpy(array.pixels[rows[part], 0]))


def _largest(array: PixelArray, positions: Sequence[int]) -> int:
    """The largest class of some masks."""
    masks = (array.pixels[array.rows[position]] for position in positions)
    return max(int(np.max(mask, where=mask != IGNORED, initial=0)) for mask in masks)


def _no_values(part: Indices) -> torch.Tensor:
    raise AssertionError("there are no targets where every image is bad")


def _name(mask: ImageRef) -> str:
    return f"mask {shown(mask)}" if isinstance(mask, Path) else "its regions"


def _of_other_size(known: _Known, masks: Sequence[ImageRef], read: Read) -> dict[int, str]:
    """The reason why a mask does not belong to its image, by index of the image."""
    codes = known.found.codes
    assert codes is not None, "who finds masks says how they are read"
    good = [i for i in range(len(masks)) if i not in read.reasons]
    with closing(FileIndex(known.cache / "files.sqlite")) as index:
        digests = [read.samples[i] for i in good]
        sizes = read_sizes([masks[i] for i in good], digests, codes.size, "mask size 1", index)
    reasons: dict[int, str] = {}
    for i, size in zip(good, sizes, strict=True):
        k = known.members[i]
        if isinstance(size, str):
            reasons[k] = f"{_name(masks[i])}: {size}"
        elif size != known.sizes[k]:
            reasons[k] = f"{_name(masks[i])}: has {_in_words(size)}, its image {_in_words(known.sizes[k])}"
    return reasons


def _boxes(known: _Known) -> Learnt:
    reasons: dict[int, str] = {}
    placed: dict[int, NDArray[np.float32]] = {}
    for k in known.members:
        label = known.found.labels[k]
        boxes: Any = label if isinstance(label, tuple) else ()
        try:
            placed[k] = placed_boxes(boxes, known.sizes[k], known.side)
        except DataError as error:
            reasons[k] = str(error)
    most = max((len(boxes) for boxes in placed.values()), default=0)

    def values(part: Indices) -> torch.Tensor:
        padded = np.zeros((len(part), max(1, most), _BOX_FIELDS), dtype=np.float32)
        padded[..., 4] = -1
        for row, k in enumerate(part.tolist()):
            padded[row, : len(placed[k])] = placed[k]
        return torch.from_numpy(padded)

    return Learnt(known.targets.classes, known.found.labels, reasons, values)


def placed_boxes(boxes: Sequence[Box], size: Size, side: int) -> NDArray[np.float32]:
    """Boxes (m, 5) float32 on the square, cut off at the edges of the picture.

    Args:
        boxes: In pixels of the picture.
        size: Width and height of the picture.
        side: Of the square.

    Raises:
        DataError: A box has no area, or reaches outside the picture by more than a pixel.
    """
    width, height = size
    for left, top, right, bottom, _ in boxes:
        shape = f"box ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not (left < right and top < bottom):
            raise DataError(f"{shape} has no area")
        if min(left, top) < -_TOLERANCE or right > width + _TOLERANCE or bottom > height + _TOLERANCE:
            raise DataError(f"{shape} reaches outside the image of {_in_words(size)}")
    values = np.asarray(boxes, dtype=np.float64).reshape(-1, _BOX_FIELDS)
    corners = values[:, :4].clip(0, np.tile(size, 2))
    placed = np.column_stack([centred(width, height, side).boxes_to_square(corners), values[:, 4]]).astype(np.float32)
    empty = np.flatnonzero((placed[:, 0] >= placed[:, 2]) | (placed[:, 1] >= placed[:, 3]))
    if len(empty):
        left, top, right, bottom, _ = boxes[int(empty[0])]
        raise DataError(f"box ({left:g}, {top:g}, {right:g}, {bottom:g}) has no area within the image")
    return placed


_Learner: TypeAlias = Callable[[_Known], Learnt]
_LEARNERS: Mapping[str, _Learner] = {"segmentation": _masks, "detection": _boxes}
