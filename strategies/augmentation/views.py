"""Fixed augmented copies of images, which make augmentation repeat, so that frozen blocks see each copy only once."""

import numpy as np
import torch
from torch import Tensor

from strategies.augmentation.draws import Replay
from strategies.augmentation.variation import vary
from strategies.strategy import Strategy

# The fields that decide how an image is varied.
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
    """One augmented copy of each image of a split, the same whatever the batches are.

    The random numbers of all images are drawn when the first image is shown.

    Args:
        strategy: In canonical form, with ``views`` above 0.
        count: Number of images in the split.
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
        """Everything, besides the images, that the copies of all views depend on."""
        return repr({name: getattr(self._strategy, name) for name in _FIELDS} | {"seed": self._seed})

    def show(self, images: Tensor, places: Tensor) -> Tensor:
        """Copies of images as the view has them, (B, C, H, W) float in [0, 1].

        Args:
            images: (B, C, H, W) float in [0, 1], not augmented.
            places: (B,) int64 on the CPU, the images' positions in the split.
        """
        return vary(images, self._strategy, Replay(self._drawn, self._generator, self._count, places))
