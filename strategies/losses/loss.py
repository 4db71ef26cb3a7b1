"""What a training loss is."""

from typing import Protocol

from torch import Tensor

from strategies.strategy import Strategy


class Loss(Protocol):
    """A loss as the tables have it; regression has no classes to weigh."""

    def __call__(
        self, outputs: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None, /
    ) -> Tensor:
        """The mean loss as a scalar."""
