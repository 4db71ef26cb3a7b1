"""Files of the caches: written whole or not at all, and bounded in bytes."""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

#: The system's numbers for "no room": disk full, over quota, file too large.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

#: The ending of the name of what is not whole yet.
PART = ".part"


def reserve(file: int, size: int) -> None:
    """Give an open file all the space that it will ever need.

    Raises:
        OSError: There is not so much; on file systems that cannot reserve, this shows when it is written to.
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
        OSError: Such as of a full disk, where a store to mapped memory would end the process.
    """
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_room(sizes: Mapping[Path, int], need: int, max_bytes: int, removed: Callable[[Path], bool]) -> bool:
    """Remove left-over parts and then entries, those not used for longest first, until there is room.

    Args:
        sizes: Bytes of every entry and part.
        need: Bytes that are to come.
        max_bytes: Bound of all together.
        removed: Removes an entry, or a part unless a process is building it, and says whether it did.

    Returns:
        Whether ``need`` bytes more are within the bound. Nothing is removed where that would not help.
    """
    left = dict(sizes)
    for path in sorted(left, key=lambda path: (path.suffix != PART, _used(path), path.name)):
        building = sum(size for other, size in left.items() if other.suffix == PART)
        if sum(left.values()) + need <= max_bytes:
            return True
        # What others are building stays: where that is too much, removing entries would not help.
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
