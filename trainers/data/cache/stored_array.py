"""One array of decoded images on disk, and the checks by which damage to it is found.

One folder holds one array::

    <cache>/images/<preprocessing>/<key>/pixels.npy    (N, C, S, S) uint8, a row for each content
    <cache>/images/<preprocessing>/<key>/contents      N digests of 16 bytes, sorted: the content of each row
    <cache>/images/<preprocessing>/<key>/checks        N uint32, the CRC-32 of each row; 0 where the row holds no image
    <cache>/images/<preprocessing>/<key>/reasons.json  the reasons why those rows are bad images, by row, and a digest

``<key>`` is a digest of ``contents``.
"""

import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from strategies import DataError
from trainers.atomic_files import PART, write_at
from trainers.checked_files import CheckedParts, DamagedFileError, cores
from trainers.data.cache.file_index import DIGEST_BYTES

log = logging.getLogger(__name__)

#: Digests (N,). They are compared and written as arrays only: NumPy drops zero bytes at the end of a single digest.
Contents: TypeAlias = NDArray[np.bytes_]

#: The version of how arrays are laid out: arrays of earlier versions are left to be removed as the longest unused.
VERSION = "checked"

# Rows that one thread checks at a time.
_CHECKED = 256


@dataclass(frozen=True, slots=True)
class StoredArray:
    """The files of one array, opened; ``reasons`` by row."""

    folder: Path
    contents: Contents
    checks: NDArray[np.uint32]
    pixels: NDArray[np.uint8]
    reasons: dict[int, str]


def open_array(folder: Path, shape: tuple[int, int, int, int]) -> StoredArray | None:
    """The array in a folder, whole or not, of images of that shape; None if it is missing or damaged."""
    try:
        contents = np.frombuffer((folder / "contents").read_bytes(), dtype=f"S{DIGEST_BYTES}")
        checks = np.fromfile(folder / "checks", dtype=np.uint32)
        mapped = np.lib.format.open_memmap(folder / "pixels.npy", mode="r")
        whole = (folder / "pixels.npy").stat().st_size == mapped.offset + mapped.nbytes
        reasons = {} if folder.suffix == PART else _read_reasons(folder / "reasons.json")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    # A plain view: slices of np.memmap cost several times those of np.ndarray.
    pixels = np.asarray(mapped)
    fits = pixels.dtype == np.uint8 and pixels.shape == (len(contents), *shape[1:]) and len(checks) == len(contents)
    is_named = folder.stem == key_of(folder.parent, contents)
    return StoredArray(folder, contents, checks, pixels, reasons) if whole and fits and is_named else None


def key_of(shelf: Path, contents: Contents) -> str:
    """The name of the folder of an array, in the folder of its preprocessing."""
    return hashlib.blake2b(shelf.name.encode() + contents.tobytes(), digest_size=16).hexdigest()


def check_of(row: NDArray[np.uint8]) -> int:
    """The CRC-32 of a row's pixels; 0 means that there are no pixels, and stands for none."""
    return zlib.crc32(row.reshape(-1).data) or 1


def damaged_rows(stored: StoredArray, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some rows whose pixels do not agree with their checks."""
    # Slices of bytes take half the time that rows of an array take.
    pixels, size = stored.pixels.reshape(-1).data, math.prod(stored.pixels.shape[1:])

    def bad(part: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.array([zlib.crc32(pixels[row * size : (row + 1) * size]) or 1 for row in part.tolist()])
        is_bad: NDArray[np.bool_] = found != stored.checks[part]
        return part[is_bad]

    parts = np.array_split(rows, max(1, len(rows) // _CHECKED))
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        return np.concatenate(list(pool.map(bad, parts)))


class CheckedRows:
    """Checks rows of an array before their pixels are used; images whose rows are damaged are decoded anew.

    Args:
        stored: The array.
        decoded: Decodes the image of a row. Raises DataError if that is no longer possible.
    """

    def __init__(self, stored: StoredArray, decoded: Callable[[int], NDArray[np.uint8]]) -> None:
        self._stored = stored
        self._decoded = decoded
        self._parts = CheckedParts(len(stored.checks), stored.pixels.nbytes, lambda rows: damaged_rows(stored, rows))

    def check(self, rows: NDArray[np.int64]) -> None:
        """Check rows, (M,), unless they were checked before, and mend damaged ones.

        Raises:
            DamagedFileError: A row is damaged and cannot be mended. The next opening makes the array anew.
        """
        for row in self._parts.damaged(rows).tolist():
            self._mend(row)
            self._parts.passed(np.array([row]))

    def _mend(self, row: int) -> None:
        folder = self._stored.folder
        try:
            try:
                pixels = np.ascontiguousarray(self._decoded(row))
                _write(folder / "pixels.npy", pixels.reshape(-1).data, row - len(self._stored.checks))
            except DataError:
                # So that the next opening does not find the array whole.
                _write(folder / "checks", bytes(4), row - len(self._stored.checks))
                raise
            _write(folder / "checks", check_of(pixels).to_bytes(4, "little"), row - len(self._stored.checks))
        except (OSError, DataError) as error:
            raise DamagedFileError(f"{folder} is damaged, and an image cannot be decoded anew: {error}") from error
        log.warning("%s was damaged: an image was decoded anew", folder)


def _write(path: Path, content: memoryview | bytes, row: int) -> None:
    """Write a row of a file; rows are counted from its end, below 0."""
    file = os.open(path, os.O_WRONLY)
    try:
        write_at(file, memoryview(content), os.fstat(file).st_size + row * len(content))
    finally:
        os.close(file)


def write_reasons(path: Path, reasons: dict[int, str]) -> None:
    """Write the reasons why images are bad, by row, with a digest."""
    text = json.dumps({str(row): reason for row, reason in reasons.items()})
    path.write_text(json.dumps({"digest": _digest(text), "reasons": text}))


def _read_reasons(path: Path) -> dict[int, str]:
    """The reasons in a file; errors of many kinds if the file is damaged."""
    about = json.loads(path.read_text())
    if about["digest"] != _digest(about["reasons"]):
        raise ValueError(f"{path} is damaged")
    return {int(row): str(reason) for row, reason in json.loads(about["reasons"]).items()}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
