"""Temporary folders that name their owner, so that a later start removes those of processes that were killed."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.processes.ownership import is_gone, owner

_PREFIX, _OWNER_FILE = "unfreeze-tmp-", ".owner"
# A folder is made a moment before it names its owner.
_UNNAMED_SECONDS = 60.0


def temporary_place(cache: Path | str) -> Path:
    """Where the temporary folders of the processes lie that share ``data.cache``."""
    return Path(cache).absolute() / "temporary"


@contextmanager
def temporary_folder(within: Path | None = None) -> Iterator[Path]:
    """While the ``with`` block runs, have a folder that this user alone may read.

    Args:
        within: Where the folder is made, and made too where it is missing; None for the system's temporary folder,
            which has room when ``data.cache`` is full.
    """
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
    # Found before the folder is made: a kill between the two leaves a folder that names no owner.
    name = owner()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=within))
    try:
        _name_owner(folder, name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            # A process that is just ending has written into it meanwhile. Later starts remove it.
            with suppress(OSError):
                _name_owner(folder, name)


def _name_owner(folder: Path, name: str) -> None:
    (folder / _OWNER_FILE).write_text(name, encoding="utf-8")


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """While the ``with`` block runs, have libraries make their temporary files in a folder, with all threads."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def drop_left_over(within: Path) -> None:
    """Remove folders that processes of this user, on this host, have made by :func:`temporary_folder` and left."""
    for folder in within.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid():
                continue
            if (folder / _OWNER_FILE).exists():
                if _is_gone((folder / _OWNER_FILE).read_text(encoding="utf-8")):
                    shutil.rmtree(folder, ignore_errors=True)
            elif time.time() - found.st_mtime > _UNNAMED_SECONDS:
                # Its process was killed at once, so that the folder is empty; any other is none of ours.
                folder.rmdir()


def _is_gone(owner_text: str) -> bool:
    try:
        return is_gone(owner_text)
    except ValueError:
        # A power cut took the owner's name back.
        return True
