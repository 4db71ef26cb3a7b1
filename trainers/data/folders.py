"""Images in folders, one folder a class: ``root/<class>/*``, or ``root/train/<class>/*`` and so on."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from strategies import DataError
from trainers.data.found import Found, Place, natural, quoted, train_classes

log = logging.getLogger(__name__)

# fmt: off
SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def find_folder(place: Place) -> Found:
    """Images in class folders under ``data.root``, with or without train, val and test folders above them.

    Folders within a class folder belong to the class. Hidden files and folders (``.name``) are passed over;
    files that are not images by their suffix are passed over and counted in a warning.

    Raises:
        DataError: ``root`` is missing or not a folder, there is no class folder, or one is empty.
    """
    root = checked_root(place.root, "folder")
    found: list[tuple[Path, str, str]] = []
    ignored = 0
    for split, folder in _split_folders(root).items():
        for class_folder in _class_folders(folder):
            files, others = _images(class_folder)
            ignored += others
            if not files:
                raise DataError(f"class folder {class_folder} has no images ({others} other files)")
            found += [(path, class_folder.name, split) for path in files]
    if ignored:
        log.warning("%s: %d files are not images by their suffix and were ignored", root, ignored)
    labels, splits = [label for _, label, _ in found], [split for *_, split in found]
    return Found(
        images=[path for path, *_ in found],
        labels=labels,
        names=[str(path) for path, *_ in found],
        splits=splits,
        classes=train_classes(labels, splits),
    )


def checked_root(root: Path | None, source: str) -> Path:
    """``root`` if it is a folder.

    Raises:
        DataError: It is not given, does not exist, or is not a folder.
    """
    if root is None:
        raise DataError(f"data.source={source} needs data.root, the folder that holds the images")
    if not root.exists():
        raise DataError(f"data.root={root} does not exist")
    if not root.is_dir():
        raise DataError(f"data.root={root} is a file; expected a folder")
    return root


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder that holds the class folders of each split; ``{"train": root}`` without split folders."""
    folders = {path.name: path for path in _subfolders(root)}
    named = {name: path for name, path in folders.items() if name in _SPLIT_FOLDERS}
    others = sorted(set(folders) - set(named))
    # A class may itself be called "train": beside other classes, with pictures and no folders in it.
    if not named or ("train" in named and others and not _subfolders(named["train"])):
        return {"train": root}
    if "train" not in named:
        if others:
            return {"train": root}
        raise DataError(f"{root} has {quoted(named)} but no folder 'train'")
    if others:
        log.warning("%s: folders beside train were ignored: %s", root, quoted(others))
    splits: dict[str, Path] = {}
    for name, path in named.items():
        other = splits.setdefault(_SPLIT_FOLDERS[name], path)
        if other != path:
            raise DataError(f"{root} has two folders for one split: {quoted([other.name, name])}; keep one")
    return splits


def _class_folders(folder: Path) -> list[Path]:
    found = _subfolders(folder)
    if not found:
        raise DataError(f"{folder} has no class folders; expected {folder}/<class>/<image>")
    return found


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda path: natural(path.name))


def _images(folder: Path) -> tuple[list[Path], int]:
    """Image files below ``folder`` in natural order, and how many files are not images by their suffix."""
    above = frozenset(_identity(parent) for parent in folder.resolve().parents)
    files = sorted(_walk(folder, above), key=lambda path: natural(path.relative_to(folder).as_posix()))
    # A folder here is a link to a folder that holds it; decoding will name it as a bad image.
    images = [path for path in files if path.suffix.lower() in SUFFIXES or path.is_dir()]
    return images, len(files) - len(images)


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Files below ``folder``; of a link to a folder that holds it, the link itself."""
    try:
        here = _identity(folder)
        if here in above:
            yield folder
            return
        with os.scandir(folder) as listed:
            entries = [entry for entry in listed if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        path = folder / entry.name
        # Not entry.is_dir() of a link: it raises where a link leads to itself.
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
            yield from _walk(path, above | {here})
        else:
            yield path
