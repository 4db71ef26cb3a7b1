"""From labels, as a source found them, to targets that a model can learn."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from strategies import DataError, nearest
from trainers.data.found import SPLITS, Found, listing, natural, quoted

log = logging.getLogger(__name__)

_BINS = 10
_SMALLEST_STRATUM = 10
# One of a byte's values stands for pixels that do not count.
_MOST_MASK_CLASSES = 255


@dataclass(frozen=True, slots=True)
class Targets:
    """The target of each image.

    Args:
        task: ``classification``, ``multilabel``, ``regression``, ``segmentation`` or ``detection``.
        classes: Class names in the order of their indices; for regression the names of the targets; empty if they are
            known only after masks are read.
        values: (N,) int64 class indices; or (N, C) float32, 1 where the image shows the class; or (N, K) float32;
            (N, 0) for segmentation and detection, for which :mod:`trainers.data.learnt` makes them after reading.
        strata: (N,) names of groups of like images, which a stratified split keeps in proportion: the class; the
            rarest class that an image shows; a tenth of the images by the first regression target; all images for
            segmentation and detection.
    """

    task: str
    classes: tuple[str, ...]
    values: torch.Tensor
    strata: NDArray[np.str_]

    def present(self, members: NDArray[np.int64]) -> set[str]:
        """Names of the classes in the images at ``members``; empty for tasks whose splits need not have every class."""
        if self.task not in {"classification", "multilabel"}:
            return set()
        chosen = self.values[torch.from_numpy(members)]
        shown = torch.bincount(chosen) if self.task == "classification" else chosen.any(0)
        return {self.classes[k] for k in shown.nonzero().flatten().tolist()}


def make_targets(found: Found, task: str) -> Targets:
    """Make the targets of all images that were found.

    Raises:
        DataError: There are no images, none in train, one class only, a class without train images, a label that no
            train image has, a number that is not finite, too many classes of pixels, or no box in train.
    """
    if not found.images:
        raise DataError("no images were found")
    if "train" not in found.splits:
        raise DataError(f"no train images: all {len(found.images):,} images are in val or test")
    if task not in _MAKERS:
        raise DataError(f"task={task} is unknown ({nearest(task, _MAKERS)})")
    return _MAKERS[task](found)


def check_parts(targets: Targets, parts: Mapping[str, NDArray[np.int64]]) -> None:
    """Refuse splits in which train lacks a class; warn of a class that val or test lacks.

    Args:
        targets: Of all images.
        parts: The members of each split.

    Raises:
        DataError: A class has no image left in train.
    """
    every = targets.present(np.concatenate(list(parts.values())))
    present = {split: targets.present(part) for split, part in parts.items()}
    gone = every - present["train"]
    if gone:
        raise DataError(f"no image left in train, once val and test are cut, of the classes {quoted(gone)}")
    for split in SPLITS[1:]:
        absent = every - present[split]
        if absent:
            log.warning("%s has no image of the classes %s", split, quoted(absent))


def _single(found: Found) -> Targets:
    labels = [str(label) for label in found.labels]
    classes = _classes(found, [{label} for label in labels])
    index = {name: k for k, name in enumerate(classes)}
    values = torch.tensor([index[label] for label in labels], dtype=torch.int64)
    return Targets("classification", classes, values, np.asarray(labels))


def _multiple(found: Found) -> Targets:
    labels = [frozenset(map(str, label)) for label in found.labels if isinstance(label, tuple)]
    classes = _classes(found, labels)
    index = {name: k for k, name in enumerate(classes)}
    values = torch.zeros((len(labels), len(classes)))
    for row, shown in enumerate(labels):
        values[row, [index[name] for name in shown]] = 1.0
    counts = Counter(name for shown in labels for name in shown)
    rarest = [min(sorted(shown), key=lambda name: counts[name], default="none of the classes") for shown in labels]
    return Targets("multilabel", classes, values, _merged(rarest))


def _numbers(found: Found) -> Targets:
    # Checked in the precision of training, in which more values are infinite or constant.
    with np.errstate(over="ignore"):
        values = np.asarray(found.labels, dtype=np.float64).astype(np.float32)
    bad = [
        f"{found.names[k]}: {np.asarray(found.labels[k], dtype=np.float64).tolist()}"
        for k in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
    ]
    if bad:
        raise DataError(f"{len(bad):,} images have targets that are not finite numbers{listing(bad)}")
    train = values[np.asarray(found.splits) == "train"]
    constant = [found.classes[k] for k in np.flatnonzero(np.ptp(train, axis=0) == 0)]
    if constant:
        raise DataError(f"nothing to learn: all train images have the same value of {quoted(constant)}")
    # Each bin includes its upper edge, so that a value that many images have is a stratum of its own.
    edges = np.unique(np.quantile(values[:, 0], np.linspace(0, 1, _BINS + 1)[1:], method="lower"))
    # All digits: years in seconds, for one, differ only after the sixth.
    named = [f"up to {edges[0]}", *(f"above {low}, up to {high}" for low, high in pairwise(edges))]
    bins = [named[k] for k in np.searchsorted(edges, values[:, 0], side="left")]
    return Targets("regression", found.classes, torch.from_numpy(values), _merged(bins))


def _masks(found: Found) -> Targets:
    if len(found.classes) > _MOST_MASK_CLASSES:
        raise DataError(f"{len(found.classes)} classes; segmentation can tell at most {_MOST_MASK_CLASSES} apart")
    if len(found.classes) == 1:
        raise DataError(f"one class only ({quoted(found.classes)}); segmentation needs at least two")
    return Targets("segmentation", found.classes, *_alike(found))


def _boxes(found: Found) -> Targets:
    in_train = (label for label, split in zip(found.labels, found.splits, strict=True) if split == "train")
    if not any(in_train):
        faults = [f"{found.names[k]}: {reason}" for k, reason in found.faults.items()]
        raise DataError(f"nothing to learn: no train image has any box{listing(faults)}")
    return Targets("detection", found.classes, *_alike(found))


def _alike(found: Found) -> tuple[torch.Tensor, NDArray[np.str_]]:
    return torch.zeros((len(found.images), 0)), np.asarray(["images"] * len(found.images))


_MAKERS: Mapping[str, Callable[[Found], Targets]] = {
    "classification": _single,
    "multilabel": _multiple,
    "regression": _numbers,
    "segmentation": _masks,
    "detection": _boxes,
}


def _classes(found: Found, labels: Sequence[set[str] | frozenset[str]]) -> tuple[str, ...]:
    """The source's classes, or else those of train in natural order, after a check that each class can be learnt."""
    seen = {split: set[str]() for split in SPLITS}
    for split, shown in zip(found.splits, labels, strict=True):
        seen[split] |= shown
    for split in SPLITS[1:]:
        unknown = seen[split] - seen["train"]
        if unknown:
            raise DataError(f"{split} has classes without any image in train: {quoted(unknown)}")
    classes = found.classes or tuple(sorted(seen["train"], key=natural))
    missing = set(classes) - seen["train"]
    if missing:
        raise DataError(f"classes without any image in train: {quoted(missing)}")
    if len(classes) < 2 and not isinstance(found.labels[0], tuple):
        raise DataError(f"one class only ({quoted(classes)}); classification needs at least two")
    if not classes:
        raise DataError("no image has any label")
    return classes


def _merged(strata: Sequence[str]) -> NDArray[np.str_]:
    """Merge strata that are too small to be divided, and add the next smallest stratum if that is not enough."""
    counts = Counter(strata)
    small: set[str] = set()
    for name, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        together = sum(counts[member] for member in small)
        if count >= _SMALLEST_STRATUM and (together == 0 or together >= _SMALLEST_STRATUM):
            break
        small.add(name)
    return np.asarray(["others" if name in small else name for name in strata])
