"""Fixed augmented copies of images: what makes augmentation repeat, so that it need not be computed again."""

import numpy as np
import torch
from torch import Tensor

from strategies.augmentation.draws import Replay
from strategies.augmentation.variation import vary
from strategies.strategy import Strategy

# What decides how an image is varied.
_FIELDS = (
    "augment",
    "crop_area",
    "flip",
    "rotate",
    "colour",
    "saturation",
    "hue",
    "erase",
    "policy",
    "policy_ops",
    "policy_magnitude",
)


class View:
    """One augmented copy of each image of a split, always the same whichever images are in a batch.

    All of a split's images are drawn for at once, when the first of them is shown.

    Args:
        strategy: In canonical form, with ``views`` above 0.
        count: Images of the split.
        seed: The trial's.
        epoch: From 0; epoch e shows view e mod ``views``.
    """

    def __init__(self, strategy: Strategy, count: int, seed: int, epoch: int) -> None:
        self.number = epoch % strategy.views
        self._strategy = strategy
        self._count = count
        self._seed = seed
        self._drawn: list[Tensor] = []
        words = np.random.SeedSequence((seed, self.number)).generate_state(1, np.uint64)
        self._generator = torch.Generator().manual_seed(int(words[0]))

    @property
    def description(self) -> str:
        """All that the copies of all views depend on, besides the images."""
        return repr({name: getattr(self._strategy, name) for name in _FIELDS} | {"seed": self._seed})

    def show(self, images: Tensor, places: Tensor) -> Tensor:
        """Images (B, C, H, W) float in [0, 1] as this view has them.

        Args:
            images: As they are.
            places: (B,) int64 on the CPU, which of the split's images they are.
        """
        return vary(images, self._strategy, Replay(self._drawn, self._generator, self._count, places))
