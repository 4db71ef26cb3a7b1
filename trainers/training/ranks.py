"""Communication between the processes that train one model together: each sees its own part of every batch.

This is not torch's DistributedDataParallel, for three reasons. DistributedDataParallel averages the ranks' gradients as
if each rank had the same number of images, which is false for a last or small batch. It is built for parameters that
are trained from the first step to the last, while a strategy may unfreeze them epoch by epoch. And it wraps the model,
while the cut, averages, low-rank updates and checkpoints use its names and modules. Here every rank holds the same
trainer with the same seed and weights its loss by its part of the batch. Gradients are added up after the backward
pass, in a few flat buckets, before each rank's optimizer makes the same step. So clipping, SAM, EMA and accumulated
parts need to know nothing of ranks. The cost is that gradients do not travel while the backward pass still runs.
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

# Bytes of gradients that are sent at once: enough to be fast, little beside a model.
_BUCKET_BYTES = 64 * 2**20


class Ranks:
    """One of several processes that train together, with its collective operations.

    All ranks call the same methods in the same order; each waits for the others. With a single rank every method
    returns its input. Several ranks use torch's default process group: gloo for tensors on the CPU, and for tensors on
    GPUs the backend that the group was made with.

    Args:
        rank: The number of this process, from 0; rank 0 reports.
        count: Number of ranks.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        #: Whether a training step is running, in which BatchNorm's statistics are of all ranks' images.
        self.in_step = False

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.count == 1

    def sizes(self, images: int) -> list[int]:
        """The number of a batch's images on each rank, in order; the numbers differ by at most one."""
        least, more = divmod(images, self.count)
        return [least + (rank < more) for rank in range(self.count)]

    def mine(self, images: int) -> slice:
        """The slice of a batch's images that this rank has."""
        sizes = self.sizes(images)
        begin = sum(sizes[: self.rank])
        return slice(begin, begin + sizes[self.rank])

    def mine_of(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """The own images of consecutive batches, (M,) int64, and their number in each batch but the last."""
        if self.is_alone:
            return order, batch_size
        own = [part[self.mine(len(part))] for part in torch.split(order, batch_size)]
        return torch.cat(own), max(1, len(own[0]))

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """A context in which BatchNorm in train mode uses the statistics of all ranks' images (``synced_norm``)."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set on any rank; no GPU is waited for."""
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
        """The rows of all ranks, in the order of the ranks; no gradient flows through this.

        Args:
            rows: (sizes[rank], ...).
            sizes: Number of rows on each rank.

        Returns:
            (sum(sizes), ...).
        """
        if self.is_alone:
            return rows
        # Every rank has to send the same amount.
        most = max(sizes)
        sent = rows.new_zeros(most, *rows.shape[1:])
        sent[: len(rows)] = rows
        found = rows.new_empty(self.count * most, *rows.shape[1:])
        parts = list(torch.split(found, most))
        dist.all_gather(parts, sent)
        return torch.cat([part[:size] for part, size in zip(torch.split(found, most), sizes, strict=True)])

    def gather_outputs(self, outputs: Tensor, sizes: Sequence[int]) -> Tensor:
        """The outputs of all ranks, for a loss that is no mean over images: each rank computes it from all outputs.

        Args:
            outputs: (sizes[rank], ...), with gradient.
            sizes: Number of outputs on each rank, more than 0.

        Returns:
            (sum(sizes), ...). The gradient that comes back is for this rank's outputs, divided by this rank's share of
            the images, since the loss is multiplied by that share before it is added up over the ranks.
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
    """Buckets of tensors of one type and device, each of at most ``_BUCKET_BYTES`` unless a tensor is larger."""
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


#: The single rank of a training in one process.
ALONE = Ranks()


def join(meeting: Path, rank: int, count: int, device: torch.device, timeout: timedelta) -> Ranks:
    """Join torch's default process group as one of the ranks on this machine; waits for the other ranks.

    Args:
        meeting: A file that does not exist yet, the same for all ranks.
        rank: The number of this rank.
        count: Number of ranks.
        device: The device of this rank.
        timeout: How long a rank waits for the others.

    Raises:
        RuntimeError: The other ranks have not come in time.
    """
    # Ranks are processes of one machine; on the loopback interface no other machine can connect.
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store = dist.FileStore(str(meeting), count)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    return Ranks(rank, count)


def leave() -> None:
    """Leave the process group, without waiting for the other ranks."""
    if dist.is_initialized():
        break_off()
    if dist.is_initialized():
        dist.destroy_process_group()


def break_off() -> None:
    """End calls that wait for other ranks on GPUs, from any thread; on CPUs they end with the others' connections."""
    if dist.is_initialized() and "nccl" in str(dist.get_backend_config()):
        abort_process_group()
