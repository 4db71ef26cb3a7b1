"""Running out of memory: telling this error from others, and trying again in smaller parts."""

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from trainers.private_apis import disable_onednn

T = TypeVar("T")

# oneDNN's message if it cannot create a primitive. It gives no reason, but the usual reason is lack of memory.
_NO_PRIMITIVE = "could not create a primitive"
# Parts of messages, in lower case, where torch has no class of error for lack of memory.
_SIGNS = (
    # On a CPU.
    "defaultcpuallocator: can't allocate memory",
    "posix_memalign failed",
    "could not create a memory object",
    _NO_PRIMITIVE,
    "bad_alloc",
    # On a GPU: CUDA's runtime and driver, and NCCL, which names the failure of CUDA.
    "out of memory",
    # cuBLAS, cuSOLVER, cuFFT and cuDNN, which renamed its status in version 9.
    "alloc_failed",
    "allocation_failed",
    # cuBLAS begins with an allocation, and gives this status where there is no room for it.
    "cublas_status_not_initialized",
    # cuDNN tries engines until one has room for its workspace.
    "unable to find an engine",
)

logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def free_memory() -> None:
    """Free the memory of a failed computation."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def leave_onednn_if_broken(error: BaseException) -> None:
    """Compute without oneDNN from now on, if an error says that oneDNN no longer creates primitives.

    Once oneDNN had no memory for a primitive's code, it creates no new primitive in that thread, even with memory
    (https://github.com/uxlfoundation/oneDNN/pull/5907, which torch 2.14 does not have). Torch's own kernels
    are slower, and round in another way.
    """
    if isinstance(error, RuntimeError) and _NO_PRIMITIVE in str(error) and torch.backends.mkldnn.enabled:
        disable_onednn()
        logger.warning("oneDNN had no memory and stays without: goes on without oneDNN, which is slower")


class Fitting:
    """Divides work into as many parts as are needed for each part to fit into memory.

    Args:
        most: The largest number of parts that is tried; 1 for work that may not be divided.
        agree: Takes whether memory was short in this process, and returns whether it was short in any: all processes
            that work together continue in the same number of parts.
    """

    def __init__(self, most: int, agree: Callable[[bool], bool] = lambda short: short) -> None:
        self._most = most
        self._agree = agree
        #: The number of parts that is needed, as far as is known.
        self.parts = 1

    def do(self, attempt: Callable[[int], T]) -> T:
        """The result of ``attempt`` for a number of parts, which doubles each time that memory was short.

        Where memory is short for the first time, it is freed, and the same number of parts is tried again: what an
        earlier computation has left may be all that was missing.

        Args:
            attempt: Takes the number of parts; it may be interrupted anywhere and started again.
        """
        was_freed = False
        while True:
            found: T | None = None
            is_last = was_freed and 2 * self.parts > self._most
            try:
                found = attempt(self.parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                leave_onednn_if_broken(error)
                if is_last:
                    # Tell the other processes, so that they do not wait.
                    self._agree(True)
                    raise
                short = True
            else:
                short = False
            if not self._agree(short):
                return cast(T, found)
            if is_last:
                raise MemoryError("another process has no memory left")
            del found
            # Not in the except block, in which the error still holds the computed tensors.
            free_memory()
            if was_freed:
                self.parts *= 2
                logger.warning("out of memory: goes on with batches in %d parts", self.parts)
            was_freed = True

    def rows_of(self, forward: Callable[[Any], tuple[Tensor, ...]], batch: Any) -> tuple[Tensor, ...]:
        """The outputs of a forward pass in which no image depends on the images beside it, as outside of training.

        Args:
            forward: Makes a pass of some of the inputs: tensors with a row for each.
            batch: Inputs (B, ...), or a tuple of them.
        """

        def attempt(parts: int) -> tuple[Tensor, ...]:
            if parts == 1:
                return forward(batch)
            found = [forward(part) for part in split_batch(batch, parts)]
            return tuple(torch.cat(rows) for rows in zip(*found, strict=True))

        return self.do(attempt)


def split_batch(batch: Any, parts: int) -> list[Any]:
    """A tensor (B, ...), or a tuple of such tensors, in at most ``parts`` parts of nearly the same size."""
    if isinstance(batch, Tensor):
        return [part for part in torch.tensor_split(batch, parts) if len(part)]
    return list(zip(*(split_batch(tensor, parts) for tensor in batch), strict=True))


def in_parts(
    inputs: Tensor | tuple[Tensor, ...], targets: Tensor, teacher_logits: Tensor | None, parts: int
) -> Iterator[tuple[Tensor | tuple[Tensor, ...], Tensor, Tensor | None]]:
    """A batch's inputs, targets and teacher logits in ``parts`` parts of nearly the same size."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        return torch.tensor_split(tensor, parts)

    shown = split(inputs) if isinstance(inputs, Tensor) else zip(*map(split, inputs), strict=True)
    logits = split(teacher_logits) if teacher_logits is not None else [None] * parts
    return zip(shown, split(targets), logits, strict=True)
