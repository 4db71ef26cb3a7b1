"""What the processes that train one model together tell one another: each sees its own part of every batch.

Not torch's DistributedDataParallel. It averages the ranks' gradients as if each had as many images, which a last or
small batch has not; it is built for parameters that are trained from the first step to the last, while a strategy may
unfreeze them epoch by epoch; and it wraps the model, whose names and modules the cut, averages, low-rank updates and
checkpoints go by. Here every rank holds the same trainer with the same seed, each weighs its loss by its part of the
batch, and gradients are added up after the backward pass, in a few flat buckets, before the optimizer that all ranks
have in common makes its step: so clipping, SAM, EMA and accumulated parts need to know nothing of it. What is given up
is that gradients travel while the backward pass still runs.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.private_apis import abort_process_group

# Gradients that travel at once: enough to be fast, little beside a model.
_BUCKET_BYTES = 64 * 2**20


class Ranks:
    """One of several processes that train together, and what it shares with the others.

    All of them call the same methods in the same order; each waits for the others. Of one rank nothing is shared, and
    every method gives what it was given. More than one use torch's default process group: of tensors on the CPU by
    gloo, of those on GPUs by what the group was made with.

    Args:
        rank: Which one this is, from 0; 0 is the one that reports.
        count: How many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        #: Whether a step is made, in which BatchNorm's statistics are those of all ranks' images.
        self.in_step = False

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def sizes(self, images: int) -> list[int]:
        """How many of a batch's images each rank has, in order; they differ by one at most."""
        least, more = divmod(images, self.count)
        return [least + (rank < more) for rank in range(self.count)]

    def mine(self, images: int) -> slice:
        """Which of a batch's images are this rank's."""
        sizes = self.sizes(images)
        begin = sum(sizes[: self.rank])
        return slice(begin, begin + sizes[self.rank])

    def mine_of(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Own images of consecutive batches, (M,) int64, and how many each batch but the last has of them."""
        if self.is_alone:
            return order, batch_size
        own = [part[self.mine(len(part))] for part in torch.split(order, batch_size)]
        return torch.cat(own), max(1, len(own[0]))

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """A context in which BatchNorm in train mode looks at all ranks' images (see ``synced_norm``)."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Of each flag, whether it is set on any rank; no GPU is waited for."""
        if self.is_alone:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def is_any(self, flag: bool) -> bool:
        """Whether a flag is set on any rank."""
        return self.any([flag])[0]

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of the same shapes on all ranks, by their sums over the ranks."""
        if self.is_alone:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, one rank's after the other's; no gradient goes through it.

        Args:
            rows: (sizes[rank], ...).
            sizes: Of each rank.

        Returns:
            (sum(sizes), ...).
        """
        if self.is_alone:
            return rows
        # Every rank has to send as much.
        most = max(sizes)
        sent = rows.new_zeros(most, *rows.shape[1:])
        sent[: len(rows)] = rows
        found = rows.new_empty(self.count * most, *rows.shape[1:])
        parts = list(torch.split(found, most))
        dist.all_gather(parts, sent)
        return torch.cat([part[:size] for part, size in zip(torch.split(found, most), sizes, strict=True)])

    def gather_outputs(self, outputs: Tensor, sizes: Sequence[int]) -> Tensor:
        """The outputs of all ranks, for a loss that is no mean over images: each rank computes it of all of them.

        Args:
            outputs: (sizes[rank], ...), with gradient.
            sizes: Of each rank, more than 0.

        Returns:
            (sum(sizes), ...). The gradient that comes back is this rank's own, and is divided by its part of the
            images, which whoever adds up weighted losses over the ranks multiplies by.
        """
        if self.is_alone:
            return outputs
        found: Tensor = _Gathered.apply(outputs, self, sizes)
        return found


class _Gathered(torch.autograd.Function):
    """See :meth:`Ranks.gather_outputs`."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, ranks: Ranks, sizes: Sequence[int]) -> Tensor:
        begin = sum(sizes[: ranks.rank])
        ctx.own = slice(begin, begin + sizes[ranks.rank])
        ctx.scale = sum(sizes) / sizes[ranks.rank]
        return ranks.gather(outputs, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.own] * ctx.scale, None, None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device together, in parts of some bytes."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.dtype, tensor.device].append(tensor)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


#: For a training in one process.
ALONE = Ranks()


def join(meeting: Path, rank: int, count: int, device: torch.device, timeout: timedelta) -> Ranks:
    """Become one of the ranks of this machine, as torch's default process group; waits for the others.

    Args:
        meeting: A file that is not there yet, the same for all ranks.
        rank: Which this one is.
        count: How many there are.
        device: Where this one computes.
        timeout: After which one that waits for the others gives up.

    Raises:
        RuntimeError: The others have not come in time.
    """
    # Ranks are processes of one machine, and nothing of it is open to others.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store = dist.FileStore(str(meeting), count)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    return Ranks(rank, count)


def leave() -> None:
    """Part from the other ranks, whatever they do."""
    if dist.is_initialized():
        break_off()
    if dist.is_initialized():
        dist.destroy_process_group()


def break_off() -> None:
    """End what waits for other ranks on GPUs, from any thread; on CPUs that ends with the others' connections."""
    if dist.is_initialized() and "nccl" in str(dist.get_backend_config()):
        abort_process_group()
