"""Features of a data set, by which the learnt policy compares studies."""

import math
from typing import Any

import torch

from trainers import ImageData

# Images that features are computed from.
_SEEN = 256


def features_of(data: ImageData) -> dict[str, Any]:
    """Features of a data set: its sizes, the evenness of its classes, and statistics of its pixels.

    Args:
        data: Data of any task; dense targets are ignored.
    """
    places = torch.linspace(0, len(data.train) - 1, min(_SEEN, len(data.train))).long()
    images, _ = next(data.train.batches(places, len(places), torch.device("cpu")))
    pixels = images.double() / 255
    return {
        "task": data.task,
        "images": len(data.train),
        "classes": len(data.classes),
        "image_size": data.preprocessing.image_size,
        "in_chans": data.preprocessing.in_chans,
        "evenness": _evenness(data),
        "mean": pixels.mean().item(),
        "contrast": pixels.std((2, 3)).mean().item(),
        "variety": pixels.mean((1, 2, 3)).std(unbiased=False).item(),
    }


def _evenness(data: ImageData) -> float:
    """Entropy of the classes as a share of the largest possible; 1 for other tasks than classification."""
    if data.task != "classification" or len(data.classes) < 2:
        return 1.0
    shares = torch.bincount(data.train.targets, minlength=len(data.classes)).double() / len(data.train)
    return float(-(shares * shares.clamp_min(1e-12).log()).sum() / math.log(len(data.classes)))
