"""COCO's scores of bootstrap draws of images: boxes are matched and sorted once, and a draw only counts them anew.

The scores themselves come from torchmetrics (:mod:`trainers.tasks.boxes`), which takes most of a second for some
hundreds of images; hundreds of draws would take minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from trainers.tasks.boxes import IOU_THRESHOLDS, RECALL_THRESHOLDS
from trainers.tasks.resampling import Floats, Scored, mean_of_classes

# Draws that are scored at once.
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Matched:
    """The found boxes of one class, by falling score.

    Args:
        image: (D,) index of the image.
        is_right: (T, D) whether it matches a target, at each of the requested overlaps.
        targets: (N,) number of targets of the class in each image.
    """

    image: NDArray[np.int64]
    is_right: NDArray[np.bool_]
    targets: NDArray[np.int64]


def box_draws(metric: str, rows: Tensor, targets: Tensor) -> Scored:
    """The function that gives a metric of draws of images.

    Args:
        metric: ``map``, ``map50`` or ``mar``.
        rows: (N, K, 6), see :mod:`trainers.tasks.boxes`.
        targets: (N, M, 5).
    """
    overlaps = IOU_THRESHOLDS[:1] if metric == "map50" else IOU_THRESHOLDS
    matched = matched_boxes(rows, targets, overlaps)
    return lambda weights: drawn_scores(metric, matched, weights)


def drawn_scores(metric: str, classes: Sequence[Matched], weights: Floats) -> Floats:
    """The metric of draws, which say how often each image was drawn, (D, N); not a number (D,) without targets."""
    score = _recalls if metric == "mar" else _precisions
    # Few draws at once: the numbers of a class stay in the processor's cache.
    found = [
        np.stack([score(one, part[:, one.image], part @ one.targets) for one in classes], axis=1)
        for part in np.array_split(weights, max(1, len(weights) // _AT_ONCE))
        if classes
    ]
    return mean_of_classes(np.concatenate(found)) if found else np.full(len(weights), np.nan)


def _recalls(boxes: Matched, times: Floats, counts: Floats) -> Floats:
    """Recall of a class, the mean over overlaps; the boxes count ``times`` (D, B), their targets ``counts`` (D,)."""
    return np.where(counts > 0, (times @ boxes.is_right.T).mean(1) / np.maximum(counts, 1), np.nan)


def _precisions(boxes: Matched, times: Floats, counts: Floats) -> Floats:
    """Average precision of a class, the mean over overlaps; arguments as of :func:`_recalls`.

    Precision is looked at where a box is right: recall rises nowhere else, and precision is lower behind wrong boxes.
    A box that counts several times raises both, so that its last time is the one that matters.
    """
    boxes_so_far = times.cumsum(1)
    total = np.zeros(len(times))
    for right in boxes.is_right:
        places = np.flatnonzero(right)
        right_so_far = times[:, places].cumsum(1)
        # The best precision at this or any lower score; no box before the first that counts.
        precision = right_so_far / np.maximum(boxes_so_far[:, places], 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # How many of the recalls that are asked for are reached at a box, and at none before.
        reached = np.searchsorted(RECALL_THRESHOLDS, right_so_far / np.maximum(counts, 1)[:, None], side="right")
        total += (precision * np.diff(reached, axis=1, prepend=0)).sum(1)
    return np.where(counts > 0, total / (len(boxes.is_right) * len(RECALL_THRESHOLDS)), np.nan)


def matched_boxes(rows: Tensor, targets: Tensor, overlaps: Sequence[float]) -> list[Matched]:
    """The found boxes of each class that occurs among the targets, at these overlaps (T,)."""
    classes = []
    for label in np.unique(targets[..., 4][targets[..., 4] >= 0].numpy()).tolist():
        scores, images, right = [], [], []
        for image, (of_image, truth) in enumerate(zip(rows, targets, strict=True)):
            found = of_image[of_image[:, 4] == label]
            found = found[found[:, 5].argsort(descending=True, stable=True)]
            # In double precision, since an overlap of 0.6 must count where the limit is 0.6.
            ious = box_iou(found[:, :4].double(), truth[truth[:, 4] == label][:, :4].double())
            right.append(_match(ious, np.asarray(overlaps)))
            scores.append(found[:, 5])
            images.append(np.full(len(found), image))
        order = torch.cat(scores).argsort(descending=True, stable=True).numpy()
        counts = (targets[..., 4] == label).sum(1).numpy()
        classes.append(Matched(np.concatenate(images)[order], np.concatenate(right, axis=1)[:, order], counts))
    return classes


def _match(ious: Tensor, overlaps: Floats) -> NDArray[np.bool_]:
    """Which found boxes (D,) match a target (G,) that no better box has matched, at each overlap: (T, D)."""
    right = np.zeros((len(overlaps), len(ious)), dtype=bool)
    is_taken = np.zeros((len(overlaps), ious.shape[1]), dtype=bool)
    at, last = np.arange(len(overlaps)), ious.shape[1] - 1
    for place in (ious >= overlaps[0]).any(1).nonzero()[:, 0].tolist():
        free = np.where(is_taken, -1.0, ious[place].numpy())
        # Among equal overlaps COCO takes the last.
        best = last - free[:, ::-1].argmax(1)
        right[:, place] = free[at, best] >= overlaps
        is_taken[at[right[:, place]], best[right[:, place]]] = True
    return right
