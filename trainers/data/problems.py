"""The problems of a data set, told all at once, and the classes that are too small to be divided."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from strategies import DataError, counted
from trainers.data.cache import Progress
from trainers.data.found import SPLITS, Found, ImageRef, listing, natural
from trainers.data.pixels import Preprocessing
from trainers.data.reading import read_images

log = logging.getLogger(__name__)

# So many images are looked into before a set is refused for another reason.
_LOOKED_INTO = 5_000


def bad_images(images: Sequence[ImageRef], how: Preprocessing, cache: Path, progress: Progress) -> Mapping[int, str]:
    """The reason why an image cannot be read, by position, of the first few thousand images; nothing is stored."""
    return read_images(images[:_LOOKED_INTO], how, cache=cache, max_bytes=0, progress=progress).reasons


def without_small_classes(
    found: Found,
    task: str,
    folds: int | None,
    on_small_class: str,
    bad: Callable[[Sequence[ImageRef]], Mapping[int, str]],
) -> Found:
    """The images without those of classes that are too small to be in every split that is cut from train.

    Args:
        found: The images, their labels and the faults of the source.
        task: The task; only classes of a classification can be too small.
        folds: Parts into which train is divided; None for a single val split.
        on_small_class: "refuse" such a set, with all its problems in one message, or "skip" such classes.
        bad: Gives the reasons why images cannot be read, by position.

    Raises:
        DataError: There is such a class, or a class without images, and they are not to be skipped.
    """
    small = _small(found, folds) if task == "classification" else {}
    lines = [f"class folder {folder} has no images{others}" for folder, others in found.empty.items()]
    needed = _needed(found, folds)
    lines += [
        f"class {name!r} has {counted(count, 'image')}, but {needed} are needed, one for each split"
        for name, count in small.items()
    ]
    if not lines:
        return found
    if on_small_class == "skip":
        log.warning("data.on_small_class: %d classes were left out%s", len(lines), listing(lines))
        kept = [k for k, label in enumerate(found.labels) if label not in small]
        if not kept:
            raise DataError(f"no class has enough images{listing(lines)}")
        return _chosen(found, kept)
    ways = ["data.on_small_class=skip leaves out such classes"]
    reasons = bad(found.images)
    if reasons:
        lines += [f"{found.names[k]}: {reason}" for k, reason in sorted(reasons.items())]
        ways.append("data.on_bad_image=skip images that cannot be read")
        if found.looked_in and os.strerror(errno.ENOENT) in reasons.values():
            lines.append(found.looked_in)
    lines += found.notes
    if len(lines) == 1:
        raise DataError(f"{lines[0]}; {ways[0]}")
    raise DataError(f"the data set has {len(lines):,} problems; {', '.join(ways)}{listing(lines, most=50)}")


def _needed(found: Found, folds: int | None) -> int:
    """How many images of a class train needs, so that one can go to each split that is cut from it."""
    cut = sum(split not in found.splits for split in SPLITS[1:])
    return 1 + cut if folds is None else max(2, 1 + cut)


def _small(found: Found, folds: int | None) -> dict[str, int]:
    """Number of train images of each class that has too few, in natural order."""
    pairs = zip(found.labels, found.splits, strict=True)
    counts = Counter(str(label) for label, split in pairs if split == "train")
    return {name: counts[name] for name in sorted(counts, key=natural) if counts[name] < _needed(found, folds)}


def _chosen(found: Found, kept: Sequence[int]) -> Found:
    """Some of the images."""
    left = {str(found.labels[k]) for k in kept}
    return replace(
        found,
        images=[found.images[k] for k in kept],
        labels=[found.labels[k] for k in kept],
        names=[found.names[k] for k in kept],
        splits=[found.splits[k] for k in kept],
        classes=tuple(name for name in found.classes if name in left),
        groups=None if found.groups is None else [found.groups[k] for k in kept],
        sizes=None if found.sizes is None else [found.sizes[k] for k in kept],
        faults={place: found.faults[k] for place, k in enumerate(kept) if k in found.faults},
    )
