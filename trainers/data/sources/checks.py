"""Checks that sources share: of the task, the folder, the files, and names of files."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from strategies import DataError, nearest
from trainers.data.found import SPLITS, Place

_SOURCES_OF = {
    "classification": "coco, digits, folder, huggingface, manifest, torchvision or webdataset",
    "multilabel": "coco, huggingface, manifest or webdataset",
    "regression": "huggingface, manifest or webdataset",
    "segmentation": "coco, masks or scenes",
    "detection": "coco, scenes or voc",
}


def check_task(place: Place, source: str, *tasks: str) -> None:
    """Refuse a task that a source has no labels for.

    Args:
        place: Says the task.
        source: The source's name.
        tasks: The tasks that the source has labels for.

    Raises:
        DataError: There is no such task, or the source does not know the task; the message names sources that do.
    """
    if place.task not in _SOURCES_OF:
        raise DataError(f"task={place.task} is unknown ({nearest(place.task, _SOURCES_OF)})")
    if place.task not in tasks:
        known = " and ".join(filter(None, (", ".join(tasks[:-1]), tasks[-1])))
        raise DataError(
            f"data.source={source} has labels for {known} only; for task={place.task} take "
            f"data.source={_SOURCES_OF[place.task]}"
        )


def checked_root(root: Path | None, source: str) -> Path:
    """``root``, after a check that it is a folder.

    Raises:
        DataError: The folder is not given, does not exist, or is not a folder.
    """
    return checked_folder(root, source, "data.root", "the folder that holds the images")


def checked_folder(folder: Path | None, source: str, key: str, kind: str) -> Path:
    """``folder``, after a check that it is a folder.

    Args:
        folder: The user's value.
        source: The source's name.
        key: The study's key for the folder, such as ``data.masks``.
        kind: A name of the folder for messages.

    Raises:
        DataError: The folder is not given, does not exist, or is not a folder.
    """
    if folder is None:
        raise DataError(f"data.source={source} needs {key}, {kind}")
    if not stat.S_ISDIR(_mode(folder, key)):
        raise DataError(f"{key}={shown(folder)} is a file; expected a folder")
    return folder


def checked_files(files: Mapping[str, str], source: str, key: str, kind: str) -> dict[str, Path]:
    """The files that the user named, by split; under ``""`` a file of no split.

    Args:
        files: The user's value.
        source: The source's name.
        key: The study's key for the files, such as ``data.manifest``.
        kind: A name of the files for messages.

    Raises:
        DataError: No file is given, a split is unknown, or a path does not exist or is not a file.
    """
    if not files:
        raise DataError(f"data.source={source} needs {key}, {kind}")
    checked: dict[str, Path] = {}
    for split, text in files.items():
        if split not in {"", *SPLITS}:
            raise DataError(f"{key}.{split} is of no split ({nearest(split, SPLITS)})")
        checked[split] = file_at(Path(text), f"{key}.{split}" if split else key)
    return checked


def file_at(path: Path, key: str) -> Path:
    """``path``, which ``key`` of a study names, after a check that it is a file.

    Raises:
        DataError: The path does not exist or is not a file.
    """
    if not stat.S_ISREG(_mode(path, key)):
        raise DataError(f"{key}={shown(path)} is not a file")
    return path


def _mode(path: Path, key: str) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{key}={shown(path)} does not exist") from error
    except (OSError, ValueError) as error:
        # Not Path.exists(): it raises if a parent folder may not be entered.
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{key}={shown(path)} cannot be read: {reason}") from error


def name_fault(name: str) -> str:
    """The reason why no file can have this name; empty if a file can."""
    if not name.strip():
        return "empty path"
    if "\0" in name:
        return f"a NUL character in the path {name!r}"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return f"characters in the path {name!r} that no file name can have"
    return ""


def shown(name: Path | str) -> str:
    """A file's name in printable form: bytes that are not UTF-8 become ``\\udcXX``."""
    return str(name).encode(errors="backslashreplace").decode()
