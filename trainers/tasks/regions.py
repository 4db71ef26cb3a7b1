"""Scores of masks from pixel counts of each image, so that a validation set takes a few numbers an image.

Rows are (N, 3C + 2) float64, an image each: by class the correctly predicted, the predicted and the true pixels, then
the summed cross entropy and the number of the pixels that count, which are all pixels but the ignored ones. Scores are
of all images' pixels together. Metrics do not read their targets, which are in the rows already.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from strategies import IGNORED
from trainers.tasks.resampling import Floats, Prepared, mean_of_classes, summed


def region_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """The counts of each image that the scores need.

    Args:
        logits: (B, C, S, S) float.
        targets: (B, S, S) integer, :data:`strategies.IGNORED` for pixels that do not count.

    Returns:
        (B, 3C + 2) float64 on the CPU.
    """
    targets, num_classes = targets.long(), logits.shape[1]
    counts = targets != IGNORED
    predicted = logits.argmax(1)
    losses = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    parts = [
        _per_class(targets, counts & (predicted == targets), num_classes),
        _per_class(predicted, counts, num_classes),
        _per_class(targets, counts, num_classes),
        losses.flatten(1).sum(1, keepdim=True),
        counts.flatten(1).sum(1, keepdim=True),
    ]
    # In float64 on the CPU, because not every device has float64.
    return torch.cat([part.cpu().double() for part in parts], dim=1)


def mean_iou(rows: Tensor, targets: Tensor) -> float:
    """Intersection over union averaged over the classes that occur or are predicted; nan without pixels."""
    return iou_per_class(rows).nanmean().item()


def dice(rows: Tensor, targets: Tensor) -> float:
    """Dice score, the F1 of pixels, averaged over the classes that occur or are predicted; nan without pixels."""
    hits, predicted, true = _totals(rows)
    # For a class that neither occurs nor is predicted the score is 0 / 0.
    return (2 * hits / (predicted + true)).nanmean().item()


def pixel_accuracy(rows: Tensor, targets: Tensor) -> float:
    """Share of correctly predicted pixels; nan without pixels."""
    hits, _, true = _totals(rows)
    return (hits.sum() / true.sum()).item()


def loss(rows: Tensor, targets: Tensor) -> float:
    """Cross entropy, mean over pixels; nan without pixels."""
    return (rows[:, -2].sum() / rows[:, -1].sum()).item()


def iou_per_class(rows: Tensor) -> Tensor:
    """Intersection over union of each class, (C,) float64; nan for a class that neither occurs nor is predicted."""
    hits, predicted, true = _totals(rows)
    return hits / (predicted + true - hits)


def _ious(sums: Floats) -> Floats:
    hits, predicted, true = np.split(sums[:, :-2], 3, axis=1)
    return mean_of_classes(hits / (predicted + true - hits))


def _dices(sums: Floats) -> Floats:
    hits, predicted, true = np.split(sums[:, :-2], 3, axis=1)
    return mean_of_classes(2 * hits / (predicted + true))


def _accuracies(sums: Floats) -> Floats:
    hits, _, true = (part.sum(1) for part in np.split(sums[:, :-2], 3, axis=1))
    found: Floats = hits / true
    return found


def _losses(sums: Floats) -> Floats:
    found: Floats = sums[:, -2] / sums[:, -1]
    return found


#: The scores of draws of images.
DRAWN: dict[str, Prepared] = {
    name: summed(lambda rows, targets: rows, score)
    for name, score in {"mean_iou": _ious, "dice": _dices, "pixel_accuracy": _accuracies, "loss": _losses}.items()
}


def _totals(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correct, predicted and true pixels of each class over all images, each (C,)."""
    hits, predicted, true = rows[:, :-2].sum(0).view(3, -1)
    return hits, predicted, true


def _per_class(classes: Tensor, counts: Tensor, num_classes: int) -> Tensor:
    """Number of each image's pixels that count, by class, (B, C) int64.

    torchmetrics' samplewise counts, of one-hot pixels, take twenty times longer (21 classes, 128 x 128 pixels).
    """
    batch, bins = len(classes), num_classes + 1
    firsts = torch.arange(batch, device=classes.device)[:, None, None] * bins
    # Pixels that do not count have a bin of their own.
    places = torch.where(counts, classes, num_classes) + firsts
    return torch.bincount(places.flatten(), minlength=batch * bins).view(batch, bins)[:, :num_classes]
