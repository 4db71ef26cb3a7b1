"""Images in folders, one folder a class: ``root/<class>/*``, or ``root/train/<class>/*`` and so on."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from strategies import DataError, counted
from trainers.data.found import SPLIT_WORDS, Found, Place, listing, natural, quoted
from trainers.data.pixels import HEIC_SUFFIXES, reads_heic
from trainers.data.sources.checks import check_task, checked_root, shown

log = logging.getLogger(__name__)

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
}) | (HEIC_SUFFIXES if reads_heic() else frozenset())
# fmt: on


def find_folder(place: Place) -> Found:
    """Images in class folders under ``data.root``, with or without train, val and test folders above them.

    Folders within a class folder belong to the class. Hidden files and folders (``.name``) are skipped; files that are
    not images by their suffix are skipped and named by their suffix in a warning. Class folders without images are
    ``empty``.

    Raises:
        DataError: ``root`` is missing or not a folder, there is no class folder, all class folders are empty, one
            cannot be read, or the task is not classification.
    """
    check_task(place, "folder", "classification")
    root = checked_root(place.root, "folder")
    found: list[tuple[Path, str, str]] = []
    ignored: list[Path] = []
    empty: dict[str, str] = {}
    for split, folder in _split_folders(root).items():
        for class_folder in _class_folders(folder):
            files, others = images_below(class_folder)
            ignored += others
            if not files:
                empty[shown(class_folder)] = f" ({passed_over(others)})" if others else ""
            found += [(path, shown(class_folder.name), split) for path in files]
    if not found:
        lines = [f"{folder}{others}" for folder, others in empty.items()]
        raise DataError(f"{shown(root)}: no class folder has images{listing(lines)}")
    notes = warn_of(ignored, root)
    return Found(
        images=[path for path, *_ in found],
        labels=[label for _, label, _ in found],
        names=[shown(path) for path, *_ in found],
        splits=[split for *_, split in found],
        empty=empty,
        notes=notes,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder that holds the class folders of each split; ``{"train": root}`` without split folders."""
    folders = {path.name: path for path in subfolders(root)}
    named = {name: path for name, path in folders.items() if name in SPLIT_WORDS}
    others = sorted(set(folders) - set(named))
    # A class may itself be called "train": such a folder lies beside other classes, and holds pictures but no folders.
    if not named or ("train" in named and others and not subfolders(named["train"])):
        return {"train": root}
    if "train" not in named:
        if others:
            return {"train": root}
        raise DataError(f"{shown(root)} has {quoted(named)} but no folder 'train'")
    if others:
        log.warning("%s: folders beside train were ignored: %s", shown(root), quoted(others))
    return one_a_split(named, root)


def one_a_split(named: Mapping[str, Path], root: Path) -> dict[str, Path]:
    """Folders under ``root`` that are named like a split, by split.

    Raises:
        DataError: Two folders are of one split.
    """
    splits: dict[str, Path] = {}
    for name, path in named.items():
        other = splits.setdefault(SPLIT_WORDS[name], path)
        if other != path:
            raise DataError(f"{shown(root)} has two folders for one split: {quoted([other.name, name])}; keep one")
    return splits


def _class_folders(folder: Path) -> list[Path]:
    found = subfolders(folder)
    if not found:
        raise DataError(f"{shown(folder)} has no class folders; expected {shown(folder)}/<class>/<image>")
    return found


def subfolders(folder: Path) -> list[Path]:
    """Folders in ``folder`` that are not hidden, in natural order.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(found, key=lambda path: natural(path.name))


def warn_of(others: Sequence[Path], root: Path) -> tuple[str, ...]:
    """Log which files below a folder were passed over, and return that line; nothing if there are none."""
    if not others:
        return ()
    line = f"{shown(root)}: passed over {passed_over(others)}"
    log.warning("%s", line)
    return (line,)


def passed_over(others: Sequence[Path]) -> str:
    """Files that are not images by their suffix, such as ``3 .HEIC files, 1 suffixless file``."""
    counts = Counter(path.suffix for path in others)
    parts = [counted(count, f"{suffix or 'suffixless'} file") for suffix, count in sorted(counts.items())]
    has_heic = any(suffix.lower() in HEIC_SUFFIXES for suffix in counts)
    return ", ".join(parts) + ("; pip install pillow-heif reads HEIC" if has_heic else "")


def images_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files below ``folder`` in natural order, and the files that are not images by their suffix.

    Raises:
        DataError: A folder cannot be read.
    """
    # Both kinds of parent count: the folder may be a link, to elsewhere or to a folder above the link.
    listed_in = folder.parent.resolve()
    above = frozenset(map(_identity, {listed_in, *listed_in.parents, *folder.resolve().parents}))
    files = sorted(_walk(folder, above), key=lambda path: natural(path.relative_to(folder).as_posix()))
    # A folder here is a link to a folder that contains the link; decoding will name it as a bad image.
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES or _is_folder(path)]
    chosen = set(images)
    return images, [path for path in files if path not in chosen]


def _is_folder(path: Path) -> bool:
    """Whether a path is surely a folder: ``Path.is_dir`` raises if a link leads to a place that may not be entered."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        about = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    return about.st_dev, about.st_ino


def _unreadable(folder: Path, error: OSError) -> DataError:
    """An error with the path that the system's error names, which may be a link within the folder."""
    return DataError(f"folder {shown(error.filename or folder)} cannot be read: {error.strerror}")


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Files below ``folder``; a link to a folder that contains the link is yielded itself."""
    here = _identity(folder)
    if here in above:
        yield folder
        return
    try:
        with os.scandir(folder) as listed:
            entries = [entry for entry in listed if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    for entry in entries:
        path = folder / entry.name
        # Not entry.is_dir() of a link: it raises if the link leads to itself.
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and _is_folder(path)):
            yield from _walk(path, above | {here})
        else:
            yield path
