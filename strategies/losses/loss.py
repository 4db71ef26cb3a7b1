"""The type of a training loss."""

from typing import Protocol

from torch import Tensor

from strategies.strategy import Strategy


class Loss(Protocol):
    """A training loss; losses of regression ignore the class weights."""

    def __call__(
        self, outputs: Tensor, targets: Tensor, strategy: Strategy, class_weights: Tensor | None = None, /
    ) -> Tensor:
        """The mean loss as a scalar."""
