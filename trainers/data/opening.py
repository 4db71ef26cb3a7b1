"""Opening a data set: found, checked, split, decoded, fingerprinted."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from strategies import DataError, nearest
from trainers.data.found import SPLITS, Found, ImageRef, Place, check_found, listing, quoted
from trainers.data.reading import Progress, Read, decoded_bytes, fits, read_images
from trainers.data.sources import SOURCES
from trainers.data.split import ResidentSplit, Split, StreamedSplit
from trainers.data.splitting import Indices, check_fractions, split_indices, subset

log = logging.getLogger(__name__)

ON_BAD_IMAGE = ("refuse", "skip")


@dataclass(frozen=True, slots=True)
class ImageData:
    """A labelled image set, split and decoded.

    Two sets with one fingerprint hold the same images in the same order, so what is computed from one can be
    stored under the fingerprint and used for the other.

    Args:
        classes: Class names; a target is an index into them.
        train: What models are fitted to.
        val: What the search compares strategies on.
        test: What the winner is scored on, once.
        fingerprint: 16 hexadecimal digits that stand for the content of every split and its labels, whatever
            the files are called, wherever they lie and whatever size they are decoded to.
        skipped: Bad images that were left out, each as "path: reason".
        source: Where the images come from, in words.
        image_size: Side of the decoded images in pixels.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    skipped: tuple[str, ...]
    source: str
    image_size: int

    def summary(self) -> str:
        """One line: source, counts, classes, where the images are, fingerprint."""
        splits = (self.train, self.val, self.test)
        size = decoded_bytes(sum(map(len, splits)), self.image_size) / 2**20
        left_out = f", {len(self.skipped):,} bad images left out" if self.skipped else ""
        return (
            f"{self.source}: {len(self.train):,} train, {len(self.val):,} val, {len(self.test):,} test "
            f"images of {len(self.classes):,} classes at {self.image_size} px{left_out}, "
            f"{'resident' if self.train.resident else 'streamed'} ({size:,.1f} MiB decoded), "
            f"fingerprint {self.fingerprint}"
        )


def open_data(
    *,
    source: str,
    root: str | None,
    dataset: str | None,
    csv: str | None,
    image_size: int,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    limit_train: int | None,
    limit_val: int | None,
    limit_test: int | None,
    on_bad_image: str,
    memory_gib: float,
    workers: int,
    progress: Progress | None = None,
) -> ImageData:
    """Find, check, split and decode a labelled image set.

    Only images that a limit leaves in are decoded and checked.

    Args:
        source: Where the images come from: csv, digits, folder or torchvision.
        root: Folder of the images.
        dataset: Name of the torchvision data set.
        csv: Manifest file.
        image_size: Side of the decoded images in pixels.
        val_fraction: Fraction of train to cut for val, where the source has none.
        test_fraction: Fraction of train to cut for test, where the source has none.
        split_seed: Seed of the splits and of the limits' subsets.
        limit_train: At most so many train images, every class in proportion; None for all.
        limit_val: The same for val.
        limit_test: The same for test.
        on_bad_image: "refuse" to go on, or "skip" and name what is left out.
        memory_gib: Decoded images are kept in memory up to this size, beyond it decoded in every pass.
        workers: Worker processes that decode images not kept in memory.
        progress: Called with what is done, how many images are finished and how many there are.

    Raises:
        DataError: An argument is out of range, or the images, labels or splits cannot be used.
    """
    limits = {"train": limit_train, "val": limit_val, "test": limit_test}
    _check(source, on_bad_image, image_size=image_size, memory_gib=memory_gib, workers=workers, limits=limits)
    check_fractions(val_fraction, test_fraction)
    found = SOURCES[source](Place(Path(root) if root else None, dataset or None, Path(csv) if csv else None))
    check_found(found)
    parts = {
        split: subset(part, found.labels, limits[split], split_seed, split)
        for split, part in split_indices(found, val_fraction, test_fraction, split_seed).items()
    }
    total = sum(map(len, parts.values()))
    keep = fits(total, image_size, memory_gib)
    read = _read(found, parts, image_size, keep, _report(progress, total))
    skipped = _skipped(found, parts, read, on_bad_image)
    orders = {split: _order(found, part, read[split]) for split, part in parts.items()}
    splits = {
        split: _split(found, parts[split], read[split], order, image_size=image_size, workers=workers)
        for split, order in orders.items()
    }
    data = ImageData(
        classes=found.classes,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        fingerprint=_fingerprint(found, parts, read, orders),
        skipped=skipped,
        source=" ".join(filter(None, (source, dataset, csv or root))) if source != "digits" else source,
        image_size=image_size,
    )
    log.info("%s", data.summary())
    return data


def _check(
    source: str,
    on_bad_image: str,
    *,
    image_size: int,
    memory_gib: float,
    workers: int,
    limits: Mapping[str, int | None],
) -> None:
    if source not in SOURCES:
        raise DataError(f"data.source={source} is unknown ({nearest(source, SOURCES)})")
    if on_bad_image not in ON_BAD_IMAGE:
        raise DataError(f"data.on_bad_image={on_bad_image} is unknown ({nearest(on_bad_image, ON_BAD_IMAGE)})")
    least = {"image_size": (image_size, 1), "memory_gib": (memory_gib, 0), "workers": (workers, 0)}
    least |= {f"limit_{split}": (limit, 1) for split, limit in limits.items() if limit is not None}
    for name, (value, low) in least.items():
        if not value >= low:
            raise DataError(f"data.{name}={value} must be at least {low}")


def _report(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress("decoding images", done, total)

    return report


def _read(
    found: Found,
    parts: Mapping[str, Indices],
    image_size: int,
    keep: bool,
    report: Callable[[int], None],
) -> dict[str, Read]:
    return {
        split: read_images([found.images[k] for k in part], image_size, keep, report) for split, part in parts.items()
    }


def _skipped(
    found: Found, parts: Mapping[str, Indices], read: Mapping[str, Read], on_bad_image: str
) -> tuple[str, ...]:
    """The bad images by name and reason, once it is sure that the rest can do without them."""
    bad = [(int(parts[split][k]), reason) for split in parts for k, reason in sorted(read[split].reasons.items())]
    if not bad:
        return ()
    lines = tuple(f"{found.names[k]}: {reason}" for k, reason in bad)
    total = sum(map(len, parts.values()))
    count = f"{len(bad):,} of {total:,} images cannot be read"
    if on_bad_image == "refuse":
        raise DataError(f"{count}; data.on_bad_image=skip leaves them out{listing(lines)}")
    unreadable = {k for k, _ in bad}
    for split, part in parts.items():
        left = {found.labels[k] for k in part if k not in unreadable}
        emptied = {found.labels[k] for k in part} - left
        if emptied:
            raise DataError(f"{count}, and {split} has none left of the classes {quoted(emptied)}{listing(lines)}")
    log.warning("%s and were left out%s", count, listing(lines))
    return lines


def _order(found: Found, part: Indices, read: Read) -> list[int]:
    """Positions of the good images by content, so that sets of one fingerprint agree on the order as well."""
    members: list[int] = part.tolist()
    good = (k for k in range(len(part)) if k not in read.reasons)
    return sorted(good, key=lambda k: (read.digests[k], found.labels[members[k]], found.names[members[k]]))


def _split(found: Found, part: Indices, read: Read, order: Sequence[int], *, image_size: int, workers: int) -> Split:
    ordered = [int(part[k]) for k in order]
    index = {name: k for k, name in enumerate(found.classes)}
    targets = torch.tensor([index[found.labels[k]] for k in ordered], dtype=torch.int64)
    names = tuple(found.names[k] for k in ordered)
    if read.pixels is not None:
        return ResidentSplit(targets, names, read.pixels, torch.tensor(order, dtype=torch.int64))
    images: list[ImageRef] = [found.images[k] for k in ordered]
    return StreamedSplit(targets, names, images, image_size, workers)


def _fingerprint(
    found: Found,
    parts: Mapping[str, Indices],
    read: Mapping[str, Read],
    orders: Mapping[str, Sequence[int]],
) -> str:
    digest = hashlib.blake2b(repr(found.classes).encode(), digest_size=8)
    for split in SPLITS:
        entries = sorted((found.labels[parts[split][k]], read[split].digests[k]) for k in orders[split])
        digest.update(repr((split, len(entries))).encode())
        for label, content in entries:
            digest.update(repr(label).encode() + content)
    return digest.hexdigest()
