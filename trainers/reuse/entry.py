"""Rows in memory-mapped files, handed out in batches on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainers.ahead import one_ahead
from trainers.device import free_bytes
from trainers.memory import is_out_of_memory
from trainers.reuse.cut import Cut
from trainers.reuse.rows import RowLayout, Rows

# Rows are kept on a GPU if they take at most this share of the free memory there: training needs the rest.
_DEVICE_SHARE = 1 / 3
_UPLOAD_BYTES = 64 * 2**20


class Activations:
    """The rows of one entry: the outputs of a prefix for each image of a split.

    They stay readable after the entry is removed. On a CUDA device they are kept, until :meth:`release`, if they take a
    small part of the free memory there. Otherwise batches are gathered into pinned memory, one batch ahead, from the
    mapped file, which the system caches in memory as far as there is room.

    Args:
        tensors: (N, ...) each, never written to.
        keep: Whether they may be kept on a device.
    """

    def __init__(self, tensors: Rows, keep: bool = True) -> None:
        self._tensors = tensors
        self._keep = keep
        self._kept: dict[torch.device, Rows] = {}

    def __len__(self) -> int:
        return len(self._tensors[0])

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return sum(tensor.nbytes for tensor in self._tensors)

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
            gathered = one_ahead(lambda part: self._gathered(part, device), _parts(places, batch_size))
            # Moved by the computing thread, because the copy must be in order with that thread's stream.
            return (_moved(rows, device) for rows in gathered)
        return (_moved(self._gathered(part, device), device) for part in _parts(places, batch_size))

    def bytes_on(self, device: torch.device) -> int:
        """Bytes that are kept on a device."""
        return self.bytes if device in self._kept else 0

    def release(self) -> None:
        """Free what is kept on devices."""
        self._kept.clear()

    def _on(self, device: torch.device) -> Rows | None:
        # Tried at each pass: what was too little memory before may be enough now.
        if device not in self._kept and self._keep and can_be_kept(self.bytes, device):
            try:
                self._kept[device] = self._uploaded(device)
            except RuntimeError as error:
                # Enough, but not in one piece.
                if not is_out_of_memory(error):
                    raise
        return self._kept.get(device)

    def _uploaded(self, device: torch.device) -> Rows:
        kept = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in self._tensors)
        at_once = max(1, _UPLOAD_BYTES * len(self) // max(1, self.bytes))
        for part in _parts(torch.arange(len(self)), at_once):
            for whole, rows in zip(kept, _moved(self._gathered(part, device), device), strict=True):
                whole[int(part[0]) : int(part[-1]) + 1] = rows
        return kept

    def _gathered(self, places: Tensor, device: torch.device) -> Rows:
        """Rows on the host, pinned for a CUDA device."""
        # Each batch gets new pinned memory: torch reuses it only after its copy to the GPU has ended.
        pinned = device.type == "cuda"
        found = tuple(
            torch.empty((len(places), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=pinned)
            for tensor in self._tensors
        )
        for tensor, rows in zip(self._tensors, found, strict=True):
            torch.index_select(tensor, 0, places, out=rows)
        return found


def can_be_kept(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes are a small part of a CUDA device's free memory."""
    return device.type == "cuda" and size <= free_bytes(device) * _DEVICE_SHARE


def share_of(device: torch.device) -> int:
    """Bytes that all rows kept on a CUDA device may take between two trials."""
    return int(torch.cuda.mem_get_info(device)[1] * _DEVICE_SHARE)


def open_rows(path: Path) -> Rows | None:
    """The tensors in a file, mapped to memory; None if the file is missing or not whole."""
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys(), key=int)
            return tuple(file.get_tensor(name) for name in names)
    except (OSError, ValueError, SafetensorError):
        return None


def fit(tensors: Rows, layouts: Sequence[RowLayout], images: int) -> bool:
    """Whether tensors are rows of these layouts, one for each image."""
    wanted = [((images, *layout.shape), layout.dtype) for layout in layouts]
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors] == wanted


def _moved(rows: Rows, device: torch.device) -> Rows:
    return tuple(tensor.to(device, non_blocking=True) for tensor in rows)


def _parts(places: Tensor, size: int) -> list[Tensor]:
    return [places[start : start + size] for start in range(0, len(places), size)]


@dataclass(frozen=True, slots=True)
class FrozenOutputs:
    """The outputs of a model's frozen part for the images of a split, and the cut whose suffix takes them."""

    cut: Cut
    rows: Activations
