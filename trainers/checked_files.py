"""Files that hold a digest of their own content, so that an altered file is found out when it is opened.

The digest is 32 hexadecimal digits within the file, and covers every other byte: it is BLAKE2b of the CRC-32s of all
blocks of 1 MiB. A CRC-32 finds every flipped bit and takes a fifth of the time that BLAKE2b takes; all cores compute
those of a large file.
"""

import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from strategies import UnfreezeError, first_line

#: What stands in the place of the digest until the rest of the file is written.
BLANK = b"0" * 32
#: The name of the digest in the metadata of a safetensors file.
DIGEST = "unfreeze.digest"

_BLOCK = 2**20
# Metadata is the first entry of a safetensors header, and the digest the first of ours.
_HEADER_START = 4096
_IN_HEADER = re.compile(rb'"unfreeze\.digest": ?"')


class DamagedFileError(UnfreezeError):
    """A file is truncated, or altered since it was written; the message names the file."""


def cores() -> int:
    """Processor cores that this process may use."""
    # A container's share of the machine, where the system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seal(file: int, at: int) -> None:
    """Write the digest of an open file into the file.

    Args:
        file: Descriptor of the file, whose content is complete.
        at: Offset of the digest.
    """
    os.pwrite(file, _digest(file, at), at)


def is_sealed(file: int, at: int) -> bool:
    """Whether the digest at an offset of an open file is that of the file's content."""
    return os.pread(file, len(BLANK), at) == _digest(file, at)


def _digest(file: int, at: int) -> bytes:
    """The digest of a file, as if there were zeros in its own place."""

    def crc(start: int) -> bytes:
        block = os.pread(file, _BLOCK, start)
        low, high = max(at - start, 0), min(at - start + len(BLANK), len(block))
        if low < high:
            block = block[:low] + BLANK[: high - low] + block[high:]
        return zlib.crc32(block).to_bytes(4, "little")

    starts = range(0, os.fstat(file).st_size, _BLOCK)
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
