"""Rows in memory-mapped files, handed out in batches on the device."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainers.checked_files import AT_ONCE, BLOCK, CheckedParts, DamagedFileError, checked_rows
from trainers.reuse.cut import Cut
from trainers.reuse.rows import RowLayout, Rows

logger = logging.getLogger(__name__)

# Rows are kept on a GPU if they take at most this share of the free memory there: training needs the rest.
_DEVICE_SHARE = 1 / 3
_UPLOAD_BYTES = 64 * 2**20


@dataclass(slots=True)
class RowChecks:
    """Checks the rows of a mapped file before they are used.

    Args:
        path: The file.
        blocks: The blocks in which the rows lie.
        begins: Where each tensor begins, counted from the first block.
        sizes: Bytes of a row of each tensor.
        is_damaged: Whether a block was found damaged; the file is then not used any more.
    """

    path: Path
    blocks: CheckedParts
    begins: Sequence[int]
    sizes: Sequence[int]
    is_damaged: bool = False

    def check(self, rows: NDArray[np.int64]) -> None:
        """Check all blocks in which rows lie, unless they were checked before.

        Raises:
            DamagedFileError: One of them is damaged.
        """
        for begin, size in zip(self.begins, self.sizes, strict=True):
            first, last = (begin + rows * size) // BLOCK, (begin + (rows + 1) * size - 1) // BLOCK
            for further in range(int((last - first).max(initial=-1)) + 1):
                if len(self.blocks.damaged(np.minimum(first + further, last))):
                    self._refuse()

    def check_all(self) -> None:
        """Check the whole file, as far as it was not checked before.

        Raises:
            DamagedFileError: A block is damaged.
        """
        if len(self.blocks.all_damaged()):
            self._refuse()

    def _refuse(self) -> None:
        self.is_damaged = True
        raise DamagedFileError(f"{self.path} is damaged: its rows do not agree with their checksums")


class Activations:
    """The rows of one entry: the outputs of a prefix for each image of a split.

    They stay readable after the entry is removed. On a CUDA device they are kept, until :meth:`release`, if they take a
    small part of the free memory there. Otherwise batches are gathered into pinned memory, one batch ahead, from the
    mapped file, which the system caches in memory as far as there is room.

    Args:
        tensors: (N, ...) each, never written to.
        keep: Whether they may be kept on a device.
        checks: Checks rows before their first use; None for rows that this process has computed.
    """

    def __init__(self, tensors: Rows, keep: bool = True, checks: RowChecks | None = None) -> None:
        self._tensors = tensors
        self._keep = keep
        self._checks = checks
        self._kept: dict[torch.device, Rows | None] = {}

    def __len__(self) -> int:
        return len(self._tensors[0])

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def is_damaged(self) -> bool:
        """Whether damage was found since the file was opened."""
        return self._checks is not None and self._checks.is_damaged

    def is_sound(self) -> bool:
        """Check all rows, and return whether they are as they were written."""
        try:
            if self._checks is not None:
                self._checks.check_all()
        except DamagedFileError:
            return False
        return True

    def batches(self, order: Tensor, batch_size: int, device: torch.device) -> Iterator[Rows]:
        """The rows at ``order``, in that order; the last batch may be shorter.

        Args:
            order: (M,) int64 positions, any number of them, repeats allowed.
            batch_size: Rows a batch, B.
            device: Where the batches go.

        Yields:
            Tensors (B, ...), new ones each time.

        Raises:
            IndexError: A position is out of range.
            DamagedFileError: A row is damaged; no damaged row is handed out.
        """
        places = order.to(dtype=torch.int64, device="cpu")
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(self):
            raise IndexError(f"rows {int(places.min())} ... {int(places.max())} of {len(self)}")
        kept = self._on(device)
        if kept is not None:
            return (
                tuple(tensor.index_select(0, part) for tensor in kept) for part in _parts(places.to(device), batch_size)
            )
        if device.type == "cuda":
            return self._ahead(places, batch_size, device)
        return (_moved(self._gathered(part, device), device) for part in _parts(places, batch_size))

    def bytes_on(self, device: torch.device) -> int:
        """Bytes that are kept on a device."""
        return self.bytes if self._kept.get(device) is not None else 0

    def release(self) -> None:
        """Free what is kept on devices."""
        self._kept.clear()

    def _on(self, device: torch.device) -> Rows | None:
        if device not in self._kept:
            keep = self._keep and can_be_kept(self.bytes, device)
            self._kept[device] = self._uploaded(device) if keep else None
        return self._kept[device]

    def _uploaded(self, device: torch.device) -> Rows:
        kept = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in self._tensors)
        at_once = max(1, _UPLOAD_BYTES * len(self) // max(1, self.bytes))
        for part in _parts(torch.arange(len(self)), at_once):
            for whole, rows in zip(kept, _moved(self._gathered(part, device), device), strict=True):
                whole[int(part[0]) : int(part[-1]) + 1] = rows
        return kept

    def _gathered(self, places: Tensor, device: torch.device) -> Rows:
        """Rows on the host, pinned for a CUDA device."""
        if self._checks is not None:
            self._checks.check(places.numpy())
        # Each batch gets new pinned memory: torch reuses it only after its copy to the GPU has ended.
        pinned = device.type == "cuda"
        found = tuple(
            torch.empty((len(places), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=pinned)
            for tensor in self._tensors
        )
        for tensor, rows in zip(self._tensors, found, strict=True):
            torch.index_select(tensor, 0, places, out=rows)
        return found

    def _ahead(self, places: Tensor, batch_size: int, device: torch.device) -> Iterator[Rows]:
        with ThreadPoolExecutor(max_workers=1) as reader:
            parts = _parts(places, batch_size)
            waiting = [reader.submit(self._gathered, part, device) for part in parts[:1]]
            for part in parts[1:]:
                rows = waiting.pop().result()
                waiting.append(reader.submit(self._gathered, part, device))
                # Moved by the computing thread, because the copy must be in order with that thread's stream.
                yield _moved(rows, device)
            for last in waiting:
                yield _moved(last.result(), device)


def can_be_kept(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes are a small part of a CUDA device's free memory."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE


def share_of(device: torch.device) -> int:
    """Bytes that all rows kept on a CUDA device may take between two trials."""
    return int(torch.cuda.mem_get_info(device)[1] * _DEVICE_SHARE)


def open_entry(path: Path, layouts: Sequence[RowLayout], images: int, is_checked: bool = False) -> Activations | None:
    """The rows in a file, mapped to memory; None if it is missing, damaged, or made of other rows.

    A large file is checked block by block, before the blocks are used, and a small one now.

    Args:
        path: The file.
        layouts: The expected tensors.
        images: The expected number of rows.
        is_checked: Whether this process has just written the file.
    """
    try:
        # First of all: what the header says is believed only then.
        blocks, begins = (None, {}) if is_checked else checked_rows(path)
        with safe_open(path, "pt") as file:
            names = sorted(file.keys(), key=int)
            tensors = tuple(file.get_tensor(name) for name in names)
    except (OSError, ValueError, SafetensorError, DamagedFileError):
        return None
    if not _fit(tensors, layouts, images):
        return None
    if blocks is None:
        return Activations(tensors)
    checks = RowChecks(path, blocks, [begins[name] for name in names], [layout.bytes for layout in layouts])
    found = Activations(tensors, checks=checks)
    return found if found.bytes > AT_ONCE or found.is_sound() else None


def _fit(tensors: Rows, layouts: Sequence[RowLayout], images: int) -> bool:
    """Whether tensors are rows of these layouts, one for each image."""
    wanted = [((images, *layout.shape), layout.dtype) for layout in layouts]
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors] == wanted


def _moved(rows: Rows, device: torch.device) -> Rows:
    return tuple(tensor.to(device, non_blocking=True) for tensor in rows)


def _parts(places: Tensor, size: int) -> list[Tensor]:
    return [places[start : start + size] for start in range(0, len(places), size)]


@dataclass(frozen=True, slots=True)
class FrozenOutputs:
    """The outputs of a model's frozen part for the images of a split, and the cut whose suffix takes them.

    Args:
        cut: The cut.
        rows: The outputs.
        anew: Gives the outputs again after they were found damaged, computed anew unless another process has done so.
    """

    cut: Cut
    rows: Activations
    anew: Callable[[], Activations]

    def batches(self, order: Tensor, batch_size: int, device: torch.device) -> Iterator[Rows]:
        """As :meth:`Activations.batches`; where a row is damaged, all rows are made anew, and reading goes on there."""
        done = 0
        try:
            for rows in self.rows.batches(order, batch_size, device):
                yield rows
                done += len(rows[0])
        except DamagedFileError as error:
            logger.warning("%s; it is made anew", error)
            yield from self.anew().batches(order[done:], batch_size, device)
