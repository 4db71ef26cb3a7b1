"""Whether reusing a frozen prefix pays, by measured times."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from trainers.reuse.cut import Cut
from trainers.reuse.entry import Activations, can_be_kept
from trainers.reuse.store import ActivationStore

_REPEATS = 3
# The share of free memory up to which a file counts as cached in memory by the system.
_MEMORY_SHARE = 0.8
#: Seconds a byte of a solid-state disk of 500 MB/s. Slow on purpose: rows that do not fit in memory are read one by
#: one, and a written file is waited for until it is safe on the disk.
_DISK_SECONDS = 2e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to reuse, a line with the reason, and the seconds that a pass over the rows saves."""

    use: bool
    reason: str
    spared: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs and savings of reuse.

    Args:
        compute: Seconds to compute the prefix for an image.
        read: Seconds to read the row of an image.
        images: Number of rows: images times views.
        passes: How often each row is expected to be read, over all epochs and trials.
        bytes: Bytes of all rows.
        stored: Whether the rows are in the store already.
    """

    compute: float
    read: float
    images: int
    passes: float
    bytes: int
    stored: bool

    @property
    def saved(self) -> float:
        """Seconds that reading saves over computing anew, without the cost of storing."""
        return self.images * self.passes * (self.compute - self.read)

    @property
    def building(self) -> float:
        """Seconds until the rows are stored and safe on a disk."""
        writing = max(self.images * self.read, self.bytes * _DISK_SECONDS)
        return 0.0 if self.stored else self.images * self.compute + writing


def weigh(cost: Cost, store: ActivationStore) -> Verdict:
    """Decide by measured costs.

    Args:
        cost: From :func:`measure`.
        store: The store for the rows.
    """
    size = f"{cost.bytes / 2**20:,.1f} MiB"
    each = f"an image takes {1e3 * cost.compute:.3f} ms to compute and {1e3 * cost.read:.3f} ms to read"
    if not cost.stored and not store.room_for(cost.bytes):
        return Verdict(False, f"no reuse: {size} of activations have no room in the cache")
    if cost.read >= cost.compute:
        return Verdict(False, f"no reuse: {each}")
    if cost.saved <= cost.building:
        return Verdict(False, f"no reuse: {each}; {cost.passes:g} passes spare less than storing costs")
    why = f"reuse: {each}; {size} spare {cost.saved - cost.building:.1f} s in {cost.passes:g} passes"
    return Verdict(True, why, cost.saved / cost.passes)


def measure(
    model: nn.Module, cut: Cut, batch: Tensor, images: int, passes: float, stored: Activations | None = None
) -> Cost:
    """Time the prefix and the reading of its outputs on one batch, the best of three each.

    Rows that are not stored yet are timed as if read from memory or, if they do not fit there, from a disk of 500 MB/s.
    Call it under the autocast in which the model will run.

    Args:
        model: The classifier, on its device.
        cut: Where it would be cut.
        batch: (B, C, H, W) as the model takes them, on the same device, B as in training.
        images: Number of rows.
        passes: How often each row is expected to be read.
        stored: The rows, if they are in the store.
    """
    rows = cut.prefix(model, batch)
    compute = _best(lambda: cut.prefix(model, batch), batch.device)
    size = images * cut.row_bytes
    source = stored
    if source is None:
        source = Activations(tuple(tensor.cpu() for tensor in rows), keep=can_be_kept(size, batch.device))
    places = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[: len(batch)]
    read = _best(lambda: list(source.batches(places, len(places), batch.device)), batch.device) / len(places)
    if size > psutil.virtual_memory().available * _MEMORY_SHARE:
        read = max(read, cut.row_bytes * _DISK_SECONDS)
    return Cost(compute / len(batch), read, images, passes, size, stored is not None)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
