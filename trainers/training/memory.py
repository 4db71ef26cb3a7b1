"""What does not fit into memory: told from other errors, and done in smaller parts."""

import gc
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor

from trainers.private_apis import disable_onednn
from trainers.reuse import Rows

T = TypeVar("T")

# What oneDNN says where it can create no primitive. Why it does not say, but want of memory is the usual reason.
_NO_PRIMITIVE = "could not create a primitive"
# What torch says on a CPU, where it has no error of its own for it.
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
    """Give back what a failed computation has held and nothing needs any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def leave_onednn_if_broken(error: BaseException) -> None:
    """Compute without oneDNN from now on, where an error says that it creates no primitives any more.

    Once it had no memory for a primitive's code it creates none with new code in that thread, however much memory there
    is (https://github.com/uxlfoundation/oneDNN/pull/5907, which torch 2.14 does not have). What torch computes with
    instead is slower, and rounds in another way.
    """
    if isinstance(error, RuntimeError) and _NO_PRIMITIVE in str(error) and torch.backends.mkldnn.enabled:
        disable_onednn()
        logger.warning("oneDNN had no memory and stays without: goes on without oneDNN, which is slower")


class Fitting:
    """Does things in as many parts as it takes for each to fit into memory.

    Args:
        most: Parts that are tried at most.
        agree: Tells whether memory was short here, and is told whether it was anywhere: of several processes that do it
            together all go on in as many parts.
    """

    def __init__(self, most: int, agree: Callable[[bool], bool] = lambda short: short) -> None:
        self._most = most
        self._agree = agree
        #: How many it takes, as far as is known.
        self.parts = 1

    def do(self, attempt: Callable[[int], T]) -> T:
        """What ``attempt`` gives for a number of parts, twice as many after each time that memory was short.

        Args:
            attempt: May be broken off anywhere and begun again.
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
                    # The others need not wait.
                    self._agree(True)
                    raise
                short = True
            else:
                short = False
            if not self._agree(short):
                return cast(T, found)
            if 2 * self.parts > self._most:
                raise MemoryError("another process has no memory left")
            # Not before: the error holds what was computed until then.
            free_memory()
            self.parts *= 2
            logger.warning("out of memory: goes on with batches in %d parts", self.parts)


def in_parts(
    inputs: Tensor | Rows, wanted: Tensor, taught: Tensor | None, parts: int
) -> Iterator[tuple[Tensor | Rows, Tensor, Tensor | None]]:
    """A batch's inputs, and what is to be learnt of them, in so many parts of nearly the same size."""

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        return torch.tensor_split(tensor, parts)

    shown = split(inputs) if isinstance(inputs, Tensor) else zip(*map(split, inputs), strict=True)
    return zip(shown, split(wanted), split(taught) if taught is not None else [None] * parts, strict=True)
