"""Every image decoded once at opening: kept where it fits in memory, otherwise only verified."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from strategies import DataError
from trainers.data.found import ImageRef, pixels_and_digest

_CHUNK = 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Read:
    """The images of one split, read.

    Args:
        digests: (N,) digests of what was decoded; empty for a bad image.
        reasons: Why an image is bad, by its position.
        pixels: (N, 3, S, S) uint8, undefined at bad images; None when nothing is kept.
    """

    digests: Sequence[bytes]
    reasons: dict[int, str]
    pixels: torch.Tensor | None


def read_images(
    images: Sequence[ImageRef], image_size: int, keep: bool, report: Callable[[int], None] = lambda done: None
) -> Read:
    """Decode ``images`` in a thread pool.

    Args:
        images: (N,) what to decode.
        image_size: Side S of the decoded images.
        keep: Whether to keep the pixels.
        report: Called with the number of images finished since the last call.
    """
    pixels = torch.empty((len(images), 3, image_size, image_size), dtype=torch.uint8) if keep else None
    # Threads write through NumPy: one row of a tensor would cost a dispatch each.
    rows = None if pixels is None else pixels.numpy()
    digests = [b""] * len(images)
    reasons: dict[int, str] = {}

    def read(start: int) -> int:
        stop = min(start + _CHUNK, len(images))
        for k in range(start, stop):
            try:
                decoded, digests[k] = pixels_and_digest(images[k], image_size)
            except DataError as error:
                reasons[k] = str(error)
                continue
            if rows is not None:
                rows[k] = decoded
        return stop - start

    # Pillow releases the GIL while it decodes and resizes.
    pool = ThreadPoolExecutor(max_workers=_cores())
    try:
        for done in pool.map(read, range(0, len(images), _CHUNK)):
            report(done)
    finally:
        pool.shutdown(cancel_futures=True)
    return Read(digests, reasons, pixels)


def fits(count: int, image_size: int, memory_gib: float) -> bool:
    """Whether ``count`` decoded images take at most ``memory_gib``."""
    return decoded_bytes(count, image_size) <= memory_gib * 2**30


def decoded_bytes(count: int, image_size: int) -> int:
    """Size of ``count`` images, 3 x S x S uint8 each."""
    return count * int(np.prod((3, image_size, image_size), dtype=np.int64))


def _cores() -> int:
    # A container's share of the machine, where the system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
