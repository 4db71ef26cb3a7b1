"""Files that hold a digest of their own content, so that an altered file is found out when it is opened.

The digest is 32 hexadecimal digits within the file, and covers every other byte: it is BLAKE2b of the CRC-32s of all
blocks of 1 MiB. A CRC-32 finds every flipped bit and takes a fifth of the time that BLAKE2b takes; all cores compute
those of a large file.

A file of rows that is mapped to memory holds the CRC-32 of each block of rows in its header, and the digest covers the
header alone. So each block of a large file can be checked before its first use (:class:`CheckedParts`), instead of the
whole file when it is opened.
"""

import json
import math
import os
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from strategies import UnfreezeError, first_line

#: What stands in the place of the digest until the rest of the file is written.
BLANK = b"0" * 32
#: The name of the digest in the metadata of a safetensors file.
DIGEST = "unfreeze.digest"
#: The name of the CRC-32s of the blocks of rows there, 8 hexadecimal digits each.
CHECKS = "unfreeze.checks"
#: Bytes of a block.
BLOCK = 2**20
#: Mapped files of at most so many bytes are checked as a whole when they are opened, which takes some milliseconds.
AT_ONCE = 16 * 2**20

# Metadata is the first entry of a safetensors header, and the digest the first of ours.
_HEADER_START = 4096
# What the thread that goes ahead checks at a time; who uses a part may have to wait for that.
_PART_BYTES = 8 * 2**20

#: Numbers of parts of a file.
Parts: TypeAlias = NDArray[np.int64]
_IN_HEADER = re.compile(rb'"unfreeze\.digest": ?"')


class DamagedFileError(UnfreezeError):
    """A file is truncated, or altered since it was written; the message names the file."""


def cores() -> int:
    """Processor cores that this process may use."""
    # A container's share of the machine, where the system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CheckedParts:
    """The parts of a mapped file that agree with their checksums: each is checked once, before its first use.

    A thread goes ahead through a large file, so that little is left to be checked by those who use its parts. It stops
    at no damage: who uses a part learns whether it is damaged.

    Args:
        count: Number of parts.
        size: Bytes of the file.
        damaged: Takes numbers of parts, (M,) sorted, and gives those of them that do not agree with their checksums.
    """

    def __init__(self, count: int, size: int, damaged: Callable[[Parts], Parts]) -> None:
        self._damaged = damaged
        self._is_sound = np.zeros(count, dtype=bool)
        # So that no part is checked by two threads at once.
        self._lock = threading.Lock()
        # Parts that the thread checks at a time.
        self._at_a_time = max(1, _PART_BYTES * count // max(1, size))
        if size > AT_ONCE:
            threading.Thread(target=self._go_ahead, name="checks", daemon=True).start()

    def damaged(self, parts: Parts) -> Parts:
        """Those of some parts, (M,) in any order and repeated, that are damaged; sound ones are not checked again."""
        if self._is_sound[parts].all():
            return parts[:0]
        with self._lock:
            left = np.unique(parts[~self._is_sound[parts]])
            bad = self._damaged(left) if len(left) else left
            self.passed(np.setdiff1d(left, bad, assume_unique=True))
        return bad

    def passed(self, parts: Parts) -> None:
        """Take parts for sound, such as those that have been written anew."""
        self._is_sound[parts] = True

    def all_damaged(self) -> Parts:
        """The damaged parts of the whole file."""
        return self.damaged(np.arange(len(self._is_sound)))

    def _go_ahead(self) -> None:
        # While the process ends, no pool takes work any more.
        with suppress(RuntimeError):
            for start in range(0, len(self._is_sound), self._at_a_time):
                self.damaged(np.arange(start, min(start + self._at_a_time, len(self._is_sound))))


def seal(file: int, at: int, size: int | None = None) -> None:
    """Write the digest of an open file into the file.

    Args:
        file: Descriptor of the file, whose content is complete.
        at: Offset of the digest.
        size: Bytes that the digest covers, from the beginning; None for all.
    """
    os.pwrite(file, _digest(file, at, size), at)


def is_sealed(file: int, at: int, size: int | None = None) -> bool:
    """Whether the digest at an offset of an open file is that of the file's content, as of :func:`seal`."""
    return os.pread(file, len(BLANK), at) == _digest(file, at, size)


def _digest(file: int, at: int, size: int | None) -> bytes:
    """The digest of a file, as if there were zeros in its own place."""
    size = os.fstat(file).st_size if size is None else size

    def crc(start: int) -> bytes:
        block = os.pread(file, min(BLOCK, size - start), start)
        low, high = max(at - start, 0), min(at - start + len(BLANK), len(block))
        if low < high:
            block = block[:low] + BLANK[: high - low] + block[high:]
        return zlib.crc32(block).to_bytes(4, "little")

    starts = range(0, size, BLOCK)
    if len(starts) == 1:
        found = [crc(0)]
    else:
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            found = list(pool.map(crc, starts))
    return blake2b(b"".join(found), digest_size=len(BLANK) // 2).hexdigest().encode()


def seal_tensors(file: int) -> None:
    """Write the digest of an open safetensors file into its metadata, where :data:`BLANK` stands for the digest."""
    at = _place_in(file)
    assert at is not None, "the header has a place for the digest"
    seal(file, at)


def check_tensors(path: Path) -> bool:
    """Check a safetensors file against its digest; without a digest, only its header and length.

    Returns:
        Whether the file holds a digest; files of other programs and of earlier versions hold none.

    Raises:
        DamagedFileError: The file is truncated or altered.
        OSError: The file is missing, or cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        at = _place_in(file)
        if at is not None and not is_sealed(file, at):
            raise DamagedFileError(f"{path} is damaged: its content does not agree with its digest")
    finally:
        os.close(file)
    try:
        with safe_open(path, "pt"):
            return at is not None
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {first_line(error)}") from error


def _place_in(file: int) -> int | None:
    found = _IN_HEADER.search(os.pread(file, _HEADER_START, 0))
    return None if found is None else found.end()


def blank_checks(size: int) -> str:
    """What stands in the place of the CRC-32s of so many bytes of rows until the rows are written."""
    return "0" * 8 * math.ceil(size / BLOCK)


def seal_rows(file: int) -> None:
    """Write the CRC-32s of the rows of an open safetensors file, and the digest of its header, into the header.

    Its metadata has :data:`BLANK` in the place of the digest and, as the last entry, :func:`blank_checks`.
    """
    start = _end_of_header(file)
    starts = range(start, os.fstat(file).st_size, BLOCK)
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        checks = list(pool.map(lambda at: zlib.crc32(os.pread(file, BLOCK, at)), starts))
    name = f'"{CHECKS}": "'.encode()
    os.pwrite(
        file, "".join(f"{check:08x}" for check in checks).encode(), os.pread(file, start, 0).index(name) + len(name)
    )
    at = _place_in(file)
    assert at is not None, "the header has a place for the digest"
    seal(file, at, start)


def checked_rows(path: Path) -> tuple[CheckedParts, dict[str, int]]:
    """The blocks of rows in a file of :func:`seal_rows`, and where each tensor begins, counted from the first block.

    Raises:
        DamagedFileError: The header is altered, or the file has no such header.
        OSError: The file is missing, or cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        at, start = _place_in(file), _end_of_header(file)
        if at is None or start > os.fstat(file).st_size or not is_sealed(file, at, start):
            raise DamagedFileError(f"{path} is damaged: its header does not agree with its digest")
        header: dict[str, Any] = json.loads(os.pread(file, start - 8, 8))
    finally:
        os.close(file)
    text = header.pop("__metadata__")[CHECKS]
    checks = np.array([int(text[place : place + 8], 16) for place in range(0, len(text), 8)])
    rows = np.asarray(np.memmap(path, np.uint8, "r", start)).data if len(checks) else memoryview(b"")

    def check(block: int) -> int:
        return zlib.crc32(rows[block * BLOCK : (block + 1) * BLOCK])

    def damaged(blocks: Parts) -> Parts:
        if len(blocks) == 1:
            found = [check(blocks[0])]
        else:
            with ThreadPoolExecutor(max_workers=cores()) as pool:
                found = list(pool.map(check, blocks.tolist()))
        bad: Parts = blocks[np.array(found) != checks[blocks]]
        return bad

    parts = CheckedParts(len(checks), len(rows), damaged)
    return parts, {name: about["data_offsets"][0] for name, about in header.items()}


def _end_of_header(file: int) -> int:
    return 8 + int.from_bytes(os.pread(file, 8, 0), "little")


def save_weights(state_dict: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a model's tensors to a safetensors file with a digest, with the rights that the process gives its files."""
    path.touch()
    rights = path.stat().st_mode
    # safetensors takes neither tensors that share memory nor channels_last ones.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    save_file(tensors, path, metadata={DIGEST: BLANK.decode()})
    # safetensors replaces the file by one that only its owner may read; MLflow's server may run as another user.
    path.chmod(rights)
    file = os.open(path, os.O_RDWR)
    try:
        seal_tensors(file)
    finally:
        os.close(file)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of :func:`save_weights`, or of an earlier version, which wrote no digests; tensors are on the CPU.

    Raises:
        DamagedFileError: The file is truncated or altered.
        OSError: The file is missing, or cannot be read.
    """
    check_tensors(path)
    return load_file(path)
