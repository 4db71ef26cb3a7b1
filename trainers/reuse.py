"""Whether reusing a frozen prefix pays, and its outputs for a split when it does."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from strategies import Plan, split_blocks
from trainers.activations import ActivationStore, Content
from trainers.block_graph import BlockGraph
from trainers.cut import Cut, deepen
from trainers.rows import Rows
from trainers.stored_rows import Activations, can_be_kept

_REPEATS = 3
# Of the memory that is free, how much a file may take to count as held in it by the system.
_MEMORY_SHARE = 0.8
#: Seconds a byte of a solid-state disk of 500 MB/s; slow on purpose, as what does not fit in memory is read from there
#: row by row, and files are waited for until they are safe.
_DISK_SECONDS = 2e-9


def frozen_blocks(model: nn.Module, plan: Plan) -> int:
    """How many blocks, from the input, do the same in every epoch of a plan: where the model can be cut.

    Args:
        model: The classifier.
        plan: What a strategy asks of it.
    """
    trained = {param.block for param in plan.params if param.from_epoch is not None}
    for index, block in enumerate(split_blocks(model).body):
        # A block without a parameter that may be trained can still update the statistics of its BatchNorm.
        asleep = all(name in plan.awake and plan.awake[name] is None for name in block.modules)
        if index in trained or not asleep:
            return index
    return plan.num_blocks


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to reuse, a line that says why, and how many seconds a pass over the rows is shorter for it."""

    use: bool
    reason: str
    spared: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What reuse costs and spares.

    Args:
        compute: Seconds that the prefix takes for an image.
        read: Seconds that reading its row takes.
        images: Rows that are stored: images times views.
        passes: How often each will be read, over all epochs and trials that can be counted on.
        bytes: Of all rows.
        stored: Whether they are in the store already.
    """

    compute: float
    read: float
    images: int
    passes: float
    bytes: int
    stored: bool

    @property
    def saved(self) -> float:
        """Seconds that reading spares over computing anew, without what storing costs."""
        return self.images * self.passes * (self.compute - self.read)

    @property
    def building(self) -> float:
        """Seconds until the rows are stored and safe on a disk."""
        writing = max(self.images * self.read, self.bytes * _DISK_SECONDS)
        return 0.0 if self.stored else self.images * self.compute + writing


def weigh(cost: Cost, store: ActivationStore) -> Verdict:
    """Decide by what was measured.

    Args:
        cost: From :func:`measure`.
        store: Where the rows would be kept.
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

    Rows that are not stored yet are timed as read from memory, and where they are more than fits there, as from a disk
    of 500 MB/s. Call it under the autocast in which the model will run.

    Args:
        model: The classifier, on its device.
        cut: Where it would be cut.
        batch: (B, C, H, W) as the model takes them, on the same device, B as in training.
        images: Rows that are or would be stored.
        passes: How often each will be read.
        stored: The rows, if they are there.
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


def prefix_rows(
    store: ActivationStore,
    graph: BlockGraph,
    model: nn.Module,
    cut: Cut,
    content_of: Callable[[Cut], Content],
    images: Callable[[], Iterable[Tensor]],
    count: int,
    batch_size: int,
    shallower: Iterable[Cut] = (),
) -> Activations:
    """The prefix's outputs for a split: from the store, or computed and stored.

    They are computed from the deepest of ``shallower`` cuts that has its outputs in the store, else from the images.
    Call it under the autocast in which the model will run.

    Args:
        store: Where entries are.
        graph: Of all the cuts.
        model: The classifier, on its device.
        cut: Where it is cut.
        content_of: The content of a cut's entry for this split.
        images: Gives the split's images in its order, batches (B, C, H, W) as the model takes them, on its device.
        count: Images of the split.
        batch_size: Rows that are computed at once from those of another cut.
        shallower: Cuts of the same graph in front of ``cut``; asked for only when there is something to compute.

    Raises:
        NoRoomError: They cannot be stored.
    """

    def batches() -> Iterable[Rows]:
        for other in sorted(shallower, key=lambda other: -other.k):
            step = deepen(graph, model, other, cut) if other.k < cut.k else None
            found = store.find(content_of(other), other.rows, count) if step is not None else None
            if step is not None and found is not None:
                device = next(model.parameters()).device
                return (step(model, rows) for rows in found.batches(torch.arange(count), batch_size, device))
        return (cut.prefix(model, batch) for batch in images())

    return store.build(content_of(cut), cut.rows, count, batches)
