"""Decoded images in memory-mapped files, shared by trials, processes and nights.

The folder of an array (:mod:`trainers.data.cache.stored_array`) is built as ``<key>.part`` and renamed, durably, once
it is whole, so that every folder not called ``.part`` is whole. The CRC-32 of a row is written only after its pixels
have reached the disk: if the builder is killed, the next builder resumes from the rows that have one.

Rows are checked when they are copied to another array, and before they are used: all rows of a small array when it is
opened. Images whose rows are damaged are decoded anew.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from strategies import DataError
from trainers.atomic_files import FULL, PART, make_room, reserve, sync, write_at
from trainers.checked_files import AT_ONCE, cores
from trainers.data.cache.file_index import DIGEST_BYTES
from trainers.data.cache.mask_squares import Squares
from trainers.data.cache.stored_array import (
    VERSION,
    CheckedRows,
    Contents,
    StoredArray,
    check_of,
    damaged_rows,
    key_of,
    open_array,
    write_reasons,
)
from trainers.data.pixels import Pixels

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
DECODING = "decoding images"
WAITING = "waiting for another process that decodes these images"

_CHUNK = 16
_COMMIT_SECONDS = 1.0
_POLL_SECONDS = 0.2


class AccessError(DataError):
    """An image that cannot be read now, which says nothing about its content."""


@dataclass(frozen=True, slots=True)
class PixelArray:
    """Decoded images of a set.

    Args:
        pixels: (R, C, S, S) uint8, memory-mapped and read-only.
        rows: (N,) int64, the row of each image of the set; the row of a bad image has no meaning.
        reasons: The reason why an image is bad, by its position in the set.
        unread: The reason why an image could not be read this time, by its position. If there are any, the array is not
            whole.
        check: Checks rows, (M,), and has to be called before their pixels are used; None if all have been checked.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    reasons: dict[int, str]
    unread: dict[int, str]
    check: Callable[[NDArray[np.int64]], None] | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The content that an array is to hold.

    Args:
        contents: (R,) digests of the rows, sorted.
        first: (R,) the first image of each.
        inverse: (N,) the row of each image.
        how: The preprocessing.
    """

    contents: Contents
    first: NDArray[np.int64]
    inverse: NDArray[np.int64]
    how: Squares

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.contents), self.how.in_chans, self.how.image_size, self.how.image_size

    @property
    def bytes(self) -> int:
        return decoded_bytes(len(self.contents), self.how)


class PixelCache:
    """The arrays below one folder, bounded in bytes; the arrays not used for longest are removed first.

    Args:
        folder: ``data.cache``.
        max_bytes: Bound of all arrays together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._root = folder / "images"
        self._locks = folder / "locks"
        self._max_bytes = max_bytes

    def open(
        self, contents: Sequence[bytes], how: Squares, decoded: Callable[[int], Pixels], progress: Progress
    ) -> PixelArray | None:
        """The decoded images of a set; images that no array holds yet are decoded, by threads.

        Args:
            contents: (N,) digest of each image's content, N > 0; equal ones share a row.
            how: The preprocessing.
            decoded: Decodes the image at a position. Raises DataError for a bad image, AccessError for an image that
                cannot be read.
            progress: Called with the name of the work, the number of finished images and the number of all images.

        Returns:
            None if the bound leaves no room beside the arrays that other processes are building.

        Raises:
            DataError: The disk is full, or the folder cannot be used.
        """
        given = np.frombuffer(b"".join(contents), dtype=f"S{DIGEST_BYTES}")
        wanted = _Wanted(*np.unique(given, return_index=True, return_inverse=True), how)
        shelf = self._root / hashlib.blake2b(f"{VERSION} {how.key()}".encode(), digest_size=8).hexdigest()
        key = key_of(shelf, wanted.contents)
        try:
            found = _found(shelf / key, wanted, decoded)
            if found is not None:
                return found
            with self._alone(shelf / key, wanted, progress):
                # Another process may have built the array by now.
                return _found(shelf / key, wanted, decoded) or self._build(shelf / key, wanted, decoded, progress)
        except OSError as error:
            raise self._refusal(error, wanted.bytes) from error

    def _build(
        self, folder: Path, wanted: _Wanted, decoded: Callable[[int], Pixels], progress: Progress
    ) -> PixelArray | None:
        part = folder.with_suffix(PART)
        others = [other for other in _folders(folder.parent) if other != part]
        # Opened before room is made: a mapped file can be copied from even after its name is gone. A damaged array is
        # copied from as well, as far as its rows are not damaged.
        donors = [donor for donor in (open_array(other, wanted.shape) for other in others) if donor is not None]
        _remove_damaged(folder)
        stored = open_array(part, wanted.shape)
        if stored is None or not np.array_equal(stored.contents, wanted.contents):
            stored = self._allocated(part, wanted, donors)
        if stored is None:
            return None
        try:
            with closing(_Filling(stored, wanted, progress)) as filling:
                for donor in donors:
                    filling.copy(donor)
                donors.clear()
                filling.decode(decoded)
        except OSError as error:
            if error.errno in FULL:
                shutil.rmtree(part, ignore_errors=True)
            raise
        if not filling.unread:
            _finish(part, folder, filling.reasons)
        return PixelArray(stored.pixels, wanted.inverse, _by_image(filling.reasons, wanted.inverse), filling.unread)

    def _allocated(self, part: Path, wanted: _Wanted, donors: list[StoredArray]) -> StoredArray | None:
        """A new array without any finished row; None if the bound leaves no room for it."""
        with FileLock(self._locks / "room.lock"):
            _remove_damaged(part)
            if not self._make_room(wanted.bytes):
                return None
            try:
                _allocate(part, wanted)
            except OSError:
                shutil.rmtree(part, ignore_errors=True)
                # A removed array keeps its space on the disk for as long as it is mapped.
                if all(donor.folder.exists() for donor in donors):
                    raise
                donors.clear()
                _allocate(part, wanted)
        return open_array(part, wanted.shape)

    def _make_room(self, need: int) -> bool:
        return make_room(self.sizes(), need, self._max_bytes, self.removed)

    def sizes(self) -> dict[Path, int]:
        """Bytes of every array, and of every array that is being built."""
        return {folder: _size(folder) for shelf in _folders(self._root) for folder in _folders(shelf)}

    def removed(self, folder: Path) -> bool:
        """Remove an array, or a part unless a process is building it, and return whether it was removed."""
        if folder.suffix != PART:
            shutil.rmtree(folder, ignore_errors=True)
            return True
        try:
            with FileLock(self._locks / f"{folder.stem}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            return False
        return True

    @contextmanager
    def _alone(self, folder: Path, wanted: _Wanted, progress: Progress) -> Iterator[None]:
        """Lock the array against other builders; a process that waits shows the progress of the other."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(exist_ok=True)
        lock = FileLock(self._locks / f"{folder.name}.lock")
        for attempt in count():
            try:
                lock.acquire(timeout=_POLL_SECONDS)
                break
            except Timeout:
                if attempt == 0:
                    log.info("another process is decoding these images; waiting for it")
                other = open_array(folder.with_suffix(PART), wanted.shape)
                if other is not None:
                    progress(WAITING, int(np.count_nonzero(other.checks)), len(other.checks))
        try:
            yield
        finally:
            lock.release()

    def _refusal(self, error: OSError, need: int) -> DataError:
        if error.errno not in FULL:
            return DataError(f"data.cache={self._folder} cannot be used: {error}")
        free = shutil.disk_usage(self._folder).free
        return DataError(
            f"data.cache={self._folder} has no room for the decoded images ({error.strerror}): {need:,} bytes are "
            f"needed, {free:,} are free. Let data.cache name a folder on a larger disk, or lower data.cache_gib: a "
            "set larger than that is not stored but decoded in every epoch"
        )


class _Filling:
    """An array under construction: rows are written and synced to the disk, and then their checks are."""

    def __init__(self, stored: StoredArray, wanted: _Wanted, progress: Progress) -> None:
        self._wanted = wanted
        self._checks = stored.checks.copy()
        # A row may have been damaged since a builder that was killed has written it.
        self._checks[damaged_rows(stored, np.flatnonzero(stored.checks))] = 0
        self._new_checks = self._checks.copy()
        self._row_bytes = decoded_bytes(1, wanted.how)
        self._start = (stored.folder / "pixels.npy").stat().st_size - wanted.bytes
        self._progress = progress
        self._pixels_file = os.open(stored.folder / "pixels.npy", os.O_WRONLY)
        self._checks_file = os.open(stored.folder / "checks", os.O_WRONLY)
        self._written: list[int] = []
        self._finished = int(np.count_nonzero(self._checks))
        self._committed = time.monotonic()
        #: The reasons why images are bad, by row.
        self.reasons: dict[int, str] = {}
        #: The reasons why images could not be read, by position.
        self.unread: dict[int, str] = {}

    def close(self) -> None:
        try:
            self._commit()
        finally:
            os.close(self._pixels_file)
            os.close(self._checks_file)

    def copy(self, donor: StoredArray) -> None:
        """Copy the rows that ``donor`` holds undamaged and that are not done yet."""
        contents = self._wanted.contents
        places = np.searchsorted(donor.contents, contents).clip(max=len(donor.contents) - 1)
        held = (donor.contents[places] == contents) & (donor.checks[places] != 0) & (self._checks == 0)
        for rows in _tasks(np.flatnonzero(held)):
            whole = [row for row in rows if check_of(donor.pixels[places[row]]) == donor.checks[places[row]]]
            for row in whole:
                self._write(row, donor.pixels[places[row]])
            self._count(whole, len(whole))
        self._commit()

    def decode(self, decoded: Callable[[int], Pixels]) -> None:
        """Decode the rows that are not done yet."""
        # In the order of the set rather than of the digests: files of a set mostly lie in this order on the disk.
        todo = np.flatnonzero(self._checks == 0)
        tasks = _tasks(todo[np.argsort(self._wanted.first[todo])])

        def work(rows: list[int]) -> list[int]:
            return [row for row in rows if self._decode(row, decoded)]

        # Threads, not processes: Pillow gives up the GIL to decode and to resize, which is 89% of the time (measured,
        # 500 x 375 JPEG to 224 px), so that the rest limits them only from about nine cores on.
        pool = ThreadPoolExecutor(max_workers=cores())
        try:
            for rows, good in zip(tasks, pool.map(work, tasks), strict=True):
                self._count(good, len(rows))
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, row: int, decoded: Callable[[int], Pixels]) -> bool:
        image = int(self._wanted.first[row])
        try:
            self._write(row, decoded(image))
        except AccessError as error:
            self.unread[image] = str(error)
            return False
        except DataError as error:
            self.reasons[row] = str(error)
            return False
        return True

    def _write(self, row: int, pixels: NDArray[np.uint8]) -> None:
        pixels = np.ascontiguousarray(pixels)
        write_at(self._pixels_file, pixels.reshape(-1).data, self._start + row * self._row_bytes)
        self._new_checks[row] = check_of(pixels)

    def _count(self, good: list[int], finished: int) -> None:
        self._written += good
        self._finished += finished
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit()
        self._progress(DECODING, self._finished, len(self._checks))

    def _commit(self) -> None:
        if self._written:
            os.fsync(self._pixels_file)
            self._checks[self._written] = self._new_checks[self._written]
            os.pwrite(self._checks_file, self._checks.tobytes(), 0)
            self._written.clear()
        self._committed = time.monotonic()


def decoded_bytes(images: int, how: Squares) -> int:
    """Size of so many decoded images, each (C, S, S) uint8."""
    return images * how.in_chans * how.image_size * how.image_size


def _found(folder: Path, wanted: _Wanted, decoded: Callable[[int], Pixels]) -> PixelArray | None:
    """The wanted images, from the array of that name or from a larger array."""
    shelf = [other for other in _folders(folder.parent) if other != folder and other.suffix != PART]
    for candidate in (folder, *shelf):
        stored = open_array(candidate, wanted.shape)
        if stored is None or np.count_nonzero(stored.checks) + len(stored.reasons) != len(stored.checks):
            continue
        places = np.searchsorted(stored.contents, wanted.contents).clip(max=len(stored.contents) - 1)
        if not np.array_equal(stored.contents[places], wanted.contents):
            continue
        check = None
        if stored.pixels.nbytes > AT_ONCE:
            check = _checking(stored, places, wanted.first, decoded)
        elif len(damaged_rows(stored, places[stored.checks[places] != 0])):
            continue
        with suppress(OSError):
            os.utime(candidate)
        rows = places[wanted.inverse]
        return PixelArray(stored.pixels, rows, _by_image(stored.reasons, rows), {}, check)
    return None


def _checking(
    stored: StoredArray, places: NDArray[np.int64], first: NDArray[np.int64], decoded: Callable[[int], Pixels]
) -> Callable[[NDArray[np.int64]], None]:
    """Checks rows before they are used; ``places`` are sorted, with the first image of each."""
    return CheckedRows(stored, lambda row: decoded(int(first[np.searchsorted(places, row)]))).check


def _remove_damaged(folder: Path) -> None:
    if folder.exists():
        log.warning("%s is damaged and is made anew", folder)
        shutil.rmtree(folder)


def _allocate(part: Path, wanted: _Wanted) -> None:
    """Make the files of a new array, with all the space that they will ever need."""
    part.mkdir()
    with (part / "pixels.npy").open("wb") as file:
        about = {"descr": "|u1", "fortran_order": False, "shape": wanted.shape}
        np.lib.format.write_array_header_1_0(file, about)
        file.flush()
        reserve(file.fileno(), file.tell() + wanted.bytes)
    (part / "checks").write_bytes(bytes(4 * len(wanted.contents)))
    (part / "contents").write_bytes(wanted.contents.tobytes())


def _finish(part: Path, folder: Path, reasons: dict[int, str]) -> None:
    """Give a built array its name, once all of it is on the disk."""
    write_reasons(part / "reasons.json", reasons)
    for path in (*part.iterdir(), part):
        sync(path)
    part.rename(folder)
    sync(folder.parent)


def _tasks(rows: NDArray[np.int64]) -> list[list[int]]:
    return [rows[start : start + _CHUNK].tolist() for start in range(0, len(rows), _CHUNK)]


def _by_image(reasons: dict[int, str], rows: NDArray[np.int64]) -> dict[int, str]:
    """From reasons by row to reasons by position in the set."""
    return {int(k): reason for row, reason in reasons.items() for k in np.flatnonzero(rows == row)}


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _size(folder: Path) -> int:
    try:
        return (folder / "pixels.npy").stat().st_size
    except OSError:
        return 0
