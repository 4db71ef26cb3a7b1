"""The source of augmentation's random numbers: a generator, or a replay of what was drawn once for a whole split."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor


class Replay:
    """Gives a batch its part of the numbers that were drawn for all images of a split, draw by draw.

    Args:
        drawn: (N,) tensors, one for each draw so far; further draws are appended.
        generator: Draws for all N images.
        count: N.
        places: (B,) int64 on the CPU, the positions of the batch's images in the split.
    """

    def __init__(self, drawn: list[Tensor], generator: torch.Generator, count: int, places: Tensor) -> None:
        self._drawn = drawn
        self._generator = generator
        self._count = count
        self._places = places
        self._next = 0

    def take(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """The next draw for the batch, (B,)."""
        if self._next == len(self._drawn):
            self._drawn.append(draw(self._count, self._generator))
        self._next += 1
        return self._drawn[self._next - 1][self._places]


#: A CPU generator, so that a seed gives the same numbers on every device, or a replay.
Draws: TypeAlias = torch.Generator | Replay


def shares(n: int, draws: Draws) -> Tensor:
    """A number in [0, 1) for each of ``n`` images, (n,) float32."""
    return _drawn(n, draws, lambda count, generator: torch.rand(count, generator=generator))


def whole_numbers(n: int, end: int, draws: Draws) -> Tensor:
    """A whole number from 0 to below ``end`` for each of ``n`` images, (n,) int64."""
    return _drawn(n, draws, lambda count, generator: torch.randint(end, (count,), generator=generator))


def _drawn(n: int, draws: Draws, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
    return draws.take(draw) if isinstance(draws, Replay) else draw(n, draws)
