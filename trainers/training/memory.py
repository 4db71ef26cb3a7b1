"""Running out of memory: telling this error from others, and trying again in smaller parts."""

import gc
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor

from trainers.private_apis import disable_onednn
from trainers.reuse import Rows

T = TypeVar("T")

# oneDNN's message if it cannot create a primitive. It gives no reason, but the usual reason is lack of memory.
_NO_PRIMITIVE = "could not create a primitive"
# Messages of torch on a CPU, where it has no class of error for lack of memory.
_CPU_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "posix_memalign failed",
    "could not create a memory object",
    _NO_PRIMITIVE,
    "bad_alloc",
)

logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _CPU_SIGNS)


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
        most: The largest number of parts that is tried.
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

        Args:
            attempt: Takes the number of parts; it may be interrupted anywhere and started again.
        """
        while True:
            found: T | None = None
            try:
                found = attempt(self.parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                leave_onednn_if_broken(error)
                if 2 * self.parts > self._most:
                    # Tell the other processes, so that they do not wait.
                    self._agree(True)
                    raise
                short = True
            else:
                short = False
            if not self._agree(short):
                return cast(T, found)
            if 2 * self.parts > self._most:
                raise MemoryError("another process has no memory left")
            # Not in the except block, in which the error still holds the computed tensors.
            free_memory()
            self.parts *= 2
            logger.warning("out of memory: goes on with batches in %d parts", self.parts)


def in_parts(
    inputs: Tensor | Rows, targets: Tensor, teacher_logits: Tensor | None, parts: int
) -> Iterator[tuple[Tensor | Rows, Tensor, Tensor | None]]:
    """A batch's inputs, targets and teacher logits in ``parts`` parts of nearly the same size."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        return torch.tensor_split(tensor, parts)

    shown = split(inputs) if isinstance(inputs, Tensor) else zip(*map(split, inputs), strict=True)
    logits = split(teacher_logits) if teacher_logits is not None else [None] * parts
    return zip(shown, split(targets), logits, strict=True)
