"""Opening a data set: find, split, read, check and fingerprint its images."""

import errno
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strategies import DataError, nearest
from trainers.data.cache import Progress, decoded_bytes
from trainers.data.duplicates import find_duplicates, move_duplicates
from trainers.data.extent import short_side_read
from trainers.data.found import SPLITS, Found, ImageRef, Label, Place, listing, quoted
from trainers.data.labels import Targets, check_parts, make_targets
from trainers.data.learnt import Learnt, learn
from trainers.data.pixels import Preprocessing
from trainers.data.places import place_of
from trainers.data.problems import bad_images, without_small_classes
from trainers.data.reading import Read, read_images
from trainers.data.seen import unseen
from trainers.data.sources import SOURCES
from trainers.data.split import ResidentSplit, Split, StreamedSplit
from trainers.data.splitting import Indices, check_fractions, split_indices, subset

log = logging.getLogger(__name__)

ON_BAD_IMAGE = ("refuse", "skip")
ON_DUPLICATES = ("report", "move")
ON_SEEN = ("drop", "refuse")
ON_SMALL_CLASS = ("refuse", "skip")
#: Side of decoded images in pixels where none is said; larger images and models suggest a larger side.
LEAST_SIZE = 64
_NOUNS = {"regression": "targets", "segmentation": "classes of pixels", "detection": "classes of boxes"}
# Tasks that need the whole image: an object that is cut off cannot be outlined.
_WHOLE_IMAGE_TASKS = ("segmentation", "detection")


@dataclass(frozen=True, slots=True)
class ImageData:
    """A labelled image set, split and read.

    Args:
        task: ``classification``, ``multilabel``, ``regression``, ``segmentation`` or ``detection``.
        classes: Class names, or names of the regression targets; a target is an index into them or a column a name. In
            segmentation and detection some classes may not occur.
        train: The images that models are fitted to.
        val: The images that the search compares strategies on.
        test: The images that the winner is scored on, once.
        fingerprint: 16 hexadecimal digits that stand for the images of every split and their labels or masks. It does
            not depend on names, folders and order of files, nor on the decoded size. Of a file above 64 KiB only its
            length and its first, middle and last 4 KiB count.
        contents: By split, a digest of every byte of its images, in their order. What is computed from images is stored
            under this digest.
        skipped: Bad images that were left out, each as "path: reason".
        duplicates: Images that were found in more than one split, each as "a.png (train) = b.png (test)".
        source: Where the images come from, in words.
        preprocessing: How the images are decoded.
        digests: By split, (N,) a number for the content of each image, independent of its name and folder.
        groups: By split, (N,) a number for the group of each image (``data.columns.group``); empty without groups.
        seen: Names of images that were left out of test, since weights had been made with them; the fingerprint has
            them.
        short_side: The median short side of the images in pixels; None if unknown.
    """

    task: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    contents: Mapping[str, str]
    skipped: tuple[str, ...]
    duplicates: tuple[str, ...]
    source: str
    preprocessing: Preprocessing
    digests: Mapping[str, NDArray[np.uint64]] = field(default_factory=dict)
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    short_side: int | None = None

    def summary(self) -> str:
        """One line: source, counts, classes, where the images are, fingerprint."""
        splits = (self.train, self.val, self.test)
        size = decoded_bytes(sum(map(len, splits)), self.preprocessing) / 2**20
        noun = _NOUNS.get(self.task, "classes")
        notes = (
            (self.skipped, "bad images left out"),
            (self.duplicates, "images in more than one split"),
            (self.seen, "test images left out that model.weights or teacher were made with"),
        )
        noted = "".join(f", {len(lines):,} {what}" for lines, what in notes if lines)
        return (
            f"{self.source}: {len(self.train):,} train, {len(self.val):,} val, {len(self.test):,} test "
            f"images of {len(self.classes):,} {noun} at {self.preprocessing.image_size} px{noted}, "
            f"{'cached' if self.train.resident else 'streamed'} ({size:,.1f} MiB decoded), "
            f"fingerprint {self.fingerprint}"
        )


def open_data(
    *,
    task: str,
    source: str,
    image_size: int | None,
    in_chans: int,
    max_value: float | None,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    folds: int | None,
    fold: int,
    limit_train: int | None,
    limit_val: int | None,
    limit_test: int | None,
    on_bad_image: str,
    on_duplicates: str,
    cache: str,
    cache_gib: float,
    workers: int,
    on_seen: str = "drop",
    on_small_class: str = "refuse",
    seen: NDArray[np.uint64] | tuple[()] = (),
    progress: Progress | None = None,
    **where: Any,
) -> ImageData:
    """Find, split, read and check a labelled image set.

    Only images that a limit leaves in are read and checked. Files that have not changed since an earlier opening are
    not opened again, and images that were decoded before are not decoded again.

    Args:
        task: classification, multilabel, regression, segmentation or detection. For the last two, images are not
            cropped but shown whole on a black square.
        source: Where the images come from: coco, digits, folder, huggingface, manifest, masks, scenes, torchvision,
            voc or webdataset.
        image_size: Side of the decoded images in pixels; None for :data:`LEAST_SIZE`.
        in_chans: Channels of the decoded images.
        max_value: The value of white in images of more than 8 bits; None for the range of their type.
        val_fraction: Fraction of train to cut for val, if the source has no val.
        test_fraction: Fraction of train to cut for test, if the source has no test.
        split_seed: Seed of the splits and of the limits' subsets.
        folds: Divide train into so many parts, one of which is val; None for a single val split.
        fold: Which of the folds is val, from 0.
        limit_train: At most so many train images, every class in proportion; None for all.
        limit_val: The same for val.
        limit_test: The same for test.
        on_bad_image: "refuse" the data set, or "skip" bad images and name them.
        on_duplicates: "report" images that are in more than one split, or "move" them to train.
        cache: Folder of the decoded images and of the index of files.
        cache_gib: Bound of all decoded images in that folder; a larger set is decoded in every pass.
        workers: Worker processes that decode images that are not in the cache.
        on_seen: "drop" test images that are in ``seen``, or "refuse" the data set.
        on_small_class: "refuse" the data set if a class has too few images for every split, or "skip" such classes.
        seen: (M,) digests of the images that the weights were made with which a study starts or learns from.
        progress: Called with the name of the work, the number of finished images and the number of all images.
        where: Where the images are: the further arguments of :func:`trainers.data.places.place_of`.

    Raises:
        DataError: An argument is out of range, the images, labels or splits cannot be used, or the cache has no room.
    """
    image_size = LEAST_SIZE if image_size is None else image_size
    _check_words(
        source=source,
        on_bad_image=on_bad_image,
        on_duplicates=on_duplicates,
        on_seen=on_seen,
        on_small_class=on_small_class,
    )
    limits = {"train": limit_train, "val": limit_val, "test": limit_test}
    _check_least({"image_size": (image_size, 1), "cache_gib": (cache_gib, 0), "workers": (workers, 0)})
    _check_least({f"limit_{split}": (limit, 1) for split, limit in limits.items() if limit is not None})
    check_fractions(val_fraction, test_fraction)
    how = Preprocessing(image_size, in_chans, max_value, "pad" if task in _WHOLE_IMAGE_TASKS else "crop")
    place = place_of(task=task, source=source, **where)
    shown = progress or (lambda what, done, total: None)
    found = SOURCES[source](place)
    found = without_small_classes(
        found, task, folds, on_small_class, lambda images: bad_images(images, how, Path(cache), shown)
    )
    targets = make_targets(found, task)
    cuts = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    parts = split_indices(found.splits, targets.strata, found.groups, **cuts, folds=folds, fold=fold, seed=split_seed)
    parts = {split: subset(part, targets.strata, limits[split], split_seed, split) for split, part in parts.items()}
    check_parts(targets, parts)
    read = _read(found, parts, how, cache=Path(cache), max_bytes=cache_gib * 2**30, progress=shown)
    learnt = learn(found, targets, _members(parts), read, how, cache=Path(cache), progress=shown)
    rules = _Rules(on_bad_image, on_duplicates, on_seen, seen)
    side = short_side_read(found.images, parts["train"], read.samples, Path(cache))
    data = _checked(found, targets, parts, read, learnt, how, _in_words(source, place), rules, workers)
    return replace(data, short_side=side)


@dataclass(frozen=True, slots=True)
class _Rules:
    """Which images are left out, moved or refused; as of :func:`open_data`."""

    on_bad_image: str
    on_duplicates: str
    on_seen: str
    seen: NDArray[np.uint64] | tuple[()]


def _checked(
    found: Found,
    targets: Targets,
    parts: dict[str, Indices],
    read: Read,
    learnt: Learnt,
    how: Preprocessing,
    source: str,
    rules: _Rules,
    workers: int,
) -> ImageData:
    """The set of the images that were read, without the bad ones and the copies that the arguments leave out.

    Raises:
        DataError: Images are bad, or their absence leaves a split or class without images.
    """
    read = replace(read, reasons=read.reasons | dict(learnt.reasons))
    skipped = _skipped(found, targets, parts, read, rules.on_bad_image)
    parts = {split: part[[k not in read.reasons for k in part.tolist()]] for split, part in parts.items()}
    parts, duplicates = _without_leaks(found, targets, learnt.labels, parts, read, rules.on_duplicates)
    parts = {split: _ordered(found, learnt.labels, part, read) for split, part in parts.items()}
    # Of all images: trials are comparable whatever the test score leaves out.
    fingerprint = _fingerprint(targets.task, learnt, parts, read)
    names = [found.names[k] for k in parts["test"].tolist()]
    kept, seen = unseen(_digests(parts["test"], read), names, rules.seen, rules.on_seen)
    parts["test"] = parts["test"][kept]
    if seen:
        check_parts(targets, parts)
    splits = {split: _split(found, learnt.values(part), part, read, how, workers) for split, part in parts.items()}
    data = ImageData(
        task=targets.task,
        classes=learnt.classes,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        fingerprint=fingerprint,
        contents={split: _content(part, read) for split, part in parts.items()},
        skipped=skipped,
        duplicates=duplicates,
        source=source,
        preprocessing=how,
        digests={split: _digests(part, read) for split, part in parts.items()},
        groups=_groups(found, parts),
        seen=seen,
    )
    log.info("%s", data.summary())
    return data


def _check_words(**words: str) -> None:
    known = {
        "source": SOURCES,
        "on_bad_image": ON_BAD_IMAGE,
        "on_duplicates": ON_DUPLICATES,
        "on_seen": ON_SEEN,
        "on_small_class": ON_SMALL_CLASS,
    }
    for name, word in words.items():
        if word not in known[name]:
            raise DataError(f"data.{name}={word} is unknown ({nearest(word, known[name])})")


def _check_least(least: Mapping[str, tuple[float, float]]) -> None:
    for name, (value, low) in least.items():
        if not value >= low:
            raise DataError(f"data.{name}={value} must be at least {low}")


def _in_words(source: str, place: Place) -> str:
    where = ", ".join(place.files.values()) or str(place.root or "")
    return " ".join(filter(None, (source, place.dataset, where)))


def _read(
    found: Found,
    parts: Mapping[str, Indices],
    how: Preprocessing,
    *,
    cache: Path,
    max_bytes: float,
    progress: Progress,
) -> Read:
    """Read the members of all splits, and no other images; the results are by index into ``found``."""
    members = _members(parts)
    images = [found.images[k] for k in members.tolist()]
    read = read_images(images, how, cache=cache, max_bytes=max_bytes, progress=progress)
    samples, contents = [b""] * len(found.images), [b""] * len(found.images)
    for position, k in enumerate(members.tolist()):
        samples[k], contents[k] = read.samples[position], read.contents[position]
    reasons = {int(members[position]): reason for position, reason in read.reasons.items()}
    array = read.array
    if array is not None:
        rows = np.zeros(len(found.images), dtype=np.int64)
        rows[members] = array.rows
        array = replace(array, rows=rows)
    return Read(samples, contents, reasons, array)


def _members(parts: Mapping[str, Indices]) -> Indices:
    return np.sort(np.concatenate(list(parts.values())))


def _skipped(
    found: Found, targets: Targets, parts: Mapping[str, Indices], read: Read, on_bad_image: str
) -> tuple[str, ...]:
    """The bad images by name and reason, after a check that they may be left out."""
    if not read.reasons:
        return ()
    bad = [k for split in SPLITS for k in parts[split].tolist() if k in read.reasons]
    lines = tuple(f"{found.names[k]}: {read.reasons[k]}" for k in bad)
    total = sum(map(len, parts.values()))
    what = "images and their labels" if targets.task in _WHOLE_IMAGE_TASKS else "images"
    count = f"{len(bad):,} of {total:,} {what} cannot be read"
    if found.looked_in and any(read.reasons[k] == os.strerror(errno.ENOENT) for k in bad):
        count += f" ({found.looked_in})"
    if on_bad_image == "refuse":
        raise DataError(f"{count}; data.on_bad_image=skip leaves them out{listing(lines)}")
    for split, part in parts.items():
        left = part[~np.isin(part, bad)]
        if not len(left):
            raise DataError(f"{count}, and {split} has none left{listing(lines)}")
        emptied = targets.present(part) - targets.present(left)
        if emptied:
            raise DataError(f"{count}, and {split} has none left of the classes {quoted(emptied)}{listing(lines)}")
    log.warning("%s and were left out%s", count, listing(lines))
    return lines


def _without_leaks(
    found: Found,
    targets: Targets,
    labels: Sequence[Label],
    parts: dict[str, Indices],
    read: Read,
    on_duplicates: str,
) -> tuple[dict[str, Indices], tuple[str, ...]]:
    """The splits, rid of images that they share if ``on_duplicates`` says so, and a line for each such image."""
    copies = find_duplicates(parts, read.contents, found.names, labels)
    if copies.contradictions:
        log.warning(
            "%d images are there more than once, with different labels%s",
            *(len(copies.contradictions), listing(copies.contradictions)),
        )
    if not copies.lines:
        return parts, ()
    pairs = ", ".join(f"{number:,} in {one} and {other}" for (one, other), number in copies.pairs.items())
    if on_duplicates == "report":
        log.warning(
            "%s in several splits (%s), so scores may be too high; data.on_duplicates=move puts each into one%s",
            *(_appear(copies.contents), pairs, listing(copies.lines)),
        )
        return parts, copies.lines
    parts = move_duplicates(parts, read.contents)
    log.warning(
        "%s in several splits (%s), and data.on_duplicates=move has put each into one%s",
        *(_appear(copies.contents), pairs, listing(copies.lines)),
    )
    check_parts(targets, parts)
    return parts, copies.lines


def _appear(count: int) -> str:
    return "1 image appears" if count == 1 else f"{count:,} images appear"


def _ordered(found: Found, labels: Sequence[Label], part: Indices, read: Read) -> Indices:
    """Sort members by content, so that sets with the same fingerprint have the same order."""
    members = sorted(part.tolist(), key=lambda k: (read.samples[k], labels[k], found.names[k]))
    return np.asarray(members, dtype=np.int64)


def _split(found: Found, values: torch.Tensor, part: Indices, read: Read, how: Preprocessing, workers: int) -> Split:
    names = tuple(found.names[k] for k in part.tolist())
    if read.array is not None:
        return ResidentSplit(values, names, read.array.pixels, read.array.rows[part], read.array.check)
    images: list[ImageRef] = [found.images[k] for k in part.tolist()]
    return StreamedSplit(values, names, images, how, workers)


def _digests(part: Indices, read: Read) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(read.samples[k][:8] for k in part.tolist()), dtype=np.uint64)


def _groups(found: Found, parts: Mapping[str, Indices]) -> dict[str, NDArray[np.int64]]:
    if found.groups is None:
        return {}
    numbers = np.unique(np.asarray(found.groups), return_inverse=True)[1]
    return {split: numbers[part] for split, part in parts.items()}


def _content(part: Indices, read: Read) -> str:
    return hashlib.blake2b(b"".join(read.contents[k] for k in part.tolist()), digest_size=16).hexdigest()


def _fingerprint(task: str, learnt: Learnt, parts: Mapping[str, Indices], read: Read) -> str:
    """Made of the task, the classes and the ordered members of each split."""
    digest = hashlib.blake2b(repr((task, learnt.classes)).encode(), digest_size=8)
    for split in SPLITS:
        members = parts[split].tolist()
        digest.update(repr((split, len(members))).encode())
        for k in members:
            digest.update(repr(learnt.labels[k]).encode() + read.samples[k])
    return digest.hexdigest()
