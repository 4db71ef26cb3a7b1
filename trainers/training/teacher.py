"""A trained classifier whose answers a smaller one may learn from (distillation)."""

import torch
from torch import Tensor, nn

from strategies import resize
from trainers.device import Device
from trainers.memory import Fitting
from trainers.models import Normalise

# More images than any batch has, so that it may be divided into single ones.
_MOST_PARTS = 2**20


class Teacher:
    """Answers for training images exactly as they are shown to the model, with augmentation and mixing.

    That the teacher must see the same view was found by Beyer et al. (Knowledge Distillation: A Good Teacher Is Patient
    and Consistent, CVPR 2022).

    Args:
        model: A classifier of the study's classes; it is put into eval mode and frozen.
        normalise: Makes its input from images in [0, 1].
        image_size: Height and width of its input in pixels.
        device: Where to compute.
    """

    def __init__(self, model: nn.Module, normalise: Normalise, image_size: int, device: Device) -> None:
        self._model = model.to(device.torch).requires_grad_(False).eval()
        self._normalise = normalise
        self._image_size = image_size
        self._device = device
        self._fitting = Fitting(_MOST_PARTS)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (N, T) float32 for images (N, C, H, W) float in [0, 1]."""

        def answers(pixels: Tensor) -> tuple[Tensor]:
            with self._device.autocast():
                return (self._model(self._normalise(resize(pixels, self._image_size))).float(),)

        return self._fitting.rows_of(answers, pixels)[0]
