"""Files of the caches: written whole or not at all, and bounded in bytes."""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

#: The system's numbers for "no room": disk full, over quota, file too large.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

#: The suffix of files and folders that are not whole yet.
PART = ".part"


def reserve(file: int, size: int) -> None:
    """Reserve all the space that an open file will ever need.

    Raises:
        OSError: There is not enough space; on file systems that cannot reserve, the error comes from writing.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
    os.ftruncate(file, size)


def write_at(file: int, content: memoryview, offset: int) -> None:
    """Write all of ``content``, bytes, at a place in an open file.

    Raises:
        OSError: For example the disk is full; writing to mapped memory would then end the process.
    """
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def sync(path: Path) -> None:
    """Sync a file, or a folder's list of names, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_room(sizes: Mapping[Path, int], need: int, max_bytes: int, removed: Callable[[Path], bool]) -> bool:
    """Remove left-over parts and then entries, from the one not used for longest on, until there is room.

    Args:
        sizes: Bytes of every entry and part.
        need: Bytes of the new entry.
        max_bytes: Bound of all entries together.
        removed: Removes an entry, or a part unless a process is building it, and returns whether it was removed.

    Returns:
        Whether ``need`` bytes more are within the bound. No entry is removed if that would not help.
    """
    left = dict(sizes)
    for path in sorted(left, key=lambda path: (path.suffix != PART, _used(path), path.name)):
        building = sum(size for other, size in left.items() if other.suffix == PART)
        if sum(left.values()) + need <= max_bytes:
            return True
        # Entries under construction stay: if they take too much, removing others does not help.
        if path.suffix != PART and building + need > max_bytes:
            return False
        if removed(path):
            log.info("%s made room: %.1f GiB", path, left.pop(path) / 2**30)
    return sum(left.values()) + need <= max_bytes


def _used(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
