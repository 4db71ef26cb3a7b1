"""A handful of validation images with truth and prediction side by side, the same images in every trial."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.data import ImageData, Split
from trainers.tasks import TASKS

_COUNT = 6


def shown_places(split: Split) -> Tensor:
    """Places of the images of a split that are shown, (K,) int64: a few, evenly spread."""
    return torch.linspace(0, len(split) - 1, min(_COUNT, len(split))).long()


def pictures(data: ImageData, predicted: Tensor) -> list[NDArray[np.uint8]]:
    """Pictures of the validation images at :func:`shown_places`.

    Args:
        data: Data of a dense task.
        predicted: (K, ...) a model's predictions for these images, on the CPU.

    Returns:
        (H, W, 3) each: image, truth, prediction.
    """
    dense = TASKS[data.task].dense
    assert dense is not None, "only dense tasks have pictures"
    places = shown_places(data.val)
    images, targets = next(data.val.batches(places, len(places), torch.device("cpu")))
    return [dense.draw(*one, data.classes) for one in zip(images, targets, predicted, strict=True)]
