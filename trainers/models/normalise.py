"""Images as a model takes them: numbers of mean 0 and deviation 1."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainers.device import Device

Normalise = Callable[[Tensor], Tensor]


def normaliser(mean: Sequence[float], std: Sequence[float], device: Device) -> Normalise:
    """A function that makes a model's input of images (N, C, H, W) float in [0, 1] on the device.

    Args:
        mean: (C,) a mean for each channel.
        std: (C,) a standard deviation for each channel.
        device: Where the images are.
    """
    centre, spread = (torch.tensor(values, device=device.torch).view(1, -1, 1, 1) for values in (mean, std))
    return lambda images: ((images - centre) / spread).contiguous(memory_format=torch.channels_last)
