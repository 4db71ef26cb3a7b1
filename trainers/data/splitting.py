"""Stratified, seeded splits and subsets."""

import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.data.found import SPLITS, Found, listing, quoted

log = logging.getLogger(__name__)

Indices: TypeAlias = NDArray[np.int64]


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse fractions that leave a split empty.

    Raises:
        DataError: One is not between 0 and 1, or nothing is left for train.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise DataError(f"data.{name}={fraction} must be above 0 and below 1")
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} leave nothing "
            "for train; their sum must be below 1"
        )


def split_indices(found: Found, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Indices]:
    """The indices into ``found`` of train, val and test, each sorted.

    Splits that the source gives are kept; a missing one is cut from train, stratified and seeded, as a
    fraction of what train had.

    Raises:
        DataError: A class has too few images to be divided, or a fraction is too small to hold every class.
    """
    given = np.asarray(found.splits)
    parts: dict[str, Indices] = {split: np.flatnonzero(given == split) for split in SPLITS}
    whole = len(parts["train"])
    labels = np.asarray(found.labels)
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        if len(parts[split]) == 0:
            size = max(1, round(whole * fraction))
            parts["train"], parts[split] = _cut(parts["train"], labels, size, seed, split)
            log.info("%s: %d of %d train images, stratified, seed %d", split, size, whole, seed)
    _check_train(parts, found)
    return parts


def subset(indices: Indices, labels: Sequence[str], limit: int | None, seed: int, split: str) -> Indices:
    """At most ``limit`` of ``indices``, every class in proportion and at least once; all of them for None.

    Raises:
        DataError: There are more classes than ``limit``.
    """
    if limit is None or limit >= len(indices):
        return indices
    names, classes = np.unique(np.asarray(labels)[indices], return_inverse=True)
    if limit < len(names):
        raise DataError(f"data.limit_{split}={limit} is less than the number of classes, {len(names)}")
    counts = np.bincount(classes)
    wanted = counts * (limit / len(indices))
    kept = np.maximum(1, np.floor(wanted).astype(np.int64))
    while kept.sum() != limit:
        # Give to the class furthest below its share, or take from the one furthest above that keeps an image.
        if kept.sum() < limit:
            kept[np.argmax(np.where(kept < counts, wanted - kept, -np.inf))] += 1
        else:
            kept[np.argmax(np.where(kept > 1, kept - wanted, -np.inf))] -= 1
    order = np.random.default_rng(seed).permutation(len(indices))
    chosen = np.concatenate([order[classes[order] == k][:many] for k, many in enumerate(kept)])
    return np.sort(indices[chosen])


def _cut(indices: Indices, labels: NDArray[np.str_], size: int, seed: int, split: str) -> tuple[Indices, Indices]:
    from sklearn.model_selection import train_test_split

    names, counts = np.unique(labels[indices], return_counts=True)
    few = [f"'{name}' with {count}" for name, count in zip(names, counts, strict=True) if count < 2]
    if few:
        raise DataError(
            f"{len(few):,} classes have too few images left to cut {split} from train, at least 2 are needed:"
            + listing(few)
        )
    if size < len(names) or len(indices) - size < len(names):
        raise DataError(
            f"data.{split}_fraction puts {size:,} of {len(indices):,} images in {split}; "
            f"train and {split} need at least one for each of the {len(names):,} classes"
        )
    kept, taken = train_test_split(indices, test_size=size, random_state=seed, stratify=labels[indices])
    return np.sort(kept), np.sort(taken)


def _check_train(parts: Mapping[str, Indices], found: Found) -> None:
    """A class of two or three images may have gone to val and test altogether."""
    present = {split: {found.labels[k] for k in part} for split, part in parts.items()}
    gone = set(found.classes) - present["train"]
    if gone:
        raise DataError(f"too few images to leave any in train after cutting val and test: classes {quoted(gone)}")
    for split in SPLITS[1:]:
        absent = set(found.classes) - present[split]
        if absent:
            log.warning("%s has no image of the classes %s", split, quoted(absent))
