"""Where augmentation draws from: a generator, or what was drawn once for all images of a split."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor


class Replay:
    """What was drawn for all images of a split, for some of them, in the order in which it was drawn.

    Args:
        drawn: (N,) tensors, one a draw; what is not there yet is drawn and added.
        generator: Draws for all N images.
        count: N.
        places: (B,) int64 on the CPU, the images that are asked for.
    """

    def __init__(self, drawn: list[Tensor], generator: torch.Generator, count: int, places: Tensor) -> None:
        self._drawn = drawn
        self._generator = generator
        self._count = count
        self._places = places
        self._next = 0

    def take(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """The next draw, (B,)."""
        if self._next == len(self._drawn):
            self._drawn.append(draw(self._count, self._generator))
        self._next += 1
        return self._drawn[self._next - 1][self._places]


#: What decides: a CPU generator, so that the same seed gives the same on every device, or a replay.
Draws: TypeAlias = torch.Generator | Replay


def shares(n: int, draws: Draws) -> Tensor:
    """A number in [0, 1) for each of ``n`` images, (n,) float32."""
    return _drawn(n, draws, lambda count, generator: torch.rand(count, generator=generator))


def whole_numbers(n: int, end: int, draws: Draws) -> Tensor:
    """A whole number from 0 to below ``end`` for each of ``n`` images, (n,) int64."""
    return _drawn(n, draws, lambda count, generator: torch.randint(end, (count,), generator=generator))


def _drawn(n: int, draws: Draws, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
    return draws.take(draw) if isinstance(draws, Replay) else draw(n, draws)
