"""COCO's scores of bootstrap draws of images: boxes are matched once, and each draw only sorts the matches anew.

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
from trainers.tasks.resampling import Scored

_Floats = NDArray[np.float64]


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
    return lambda weights: np.array([drawn_score(metric, matched, draw) for draw in weights.astype(np.int64)])


def drawn_score(metric: str, classes: list[Matched], draw: NDArray[np.int64]) -> float:
    """The metric of a draw, which says how often each image was drawn (N,); not a number without targets."""
    found = []
    for one in classes:
        count = int(draw @ one.targets)
        if count:
            times = np.repeat(np.arange(len(one.image)), draw[one.image])
            right = one.is_right[:, times].cumsum(axis=1)
            found.append(_recall(right, count) if metric == "mar" else _precision(right, count))
    return float(np.mean(found)) if found else float("nan")


def _recall(right: NDArray[np.int64], count: int) -> float:
    return float(right[:, -1].mean() / count) if right.shape[1] else 0.0


def _precision(right: NDArray[np.int64], count: int) -> float:
    """Average precision of found boxes by falling score; ``right`` (T, D) counts the right boxes up to each."""
    precision: _Floats = right / np.arange(1, right.shape[1] + 1)
    # The best precision at this or any lower score.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for reached, best in zip(right / count, precision, strict=True):
        at = np.searchsorted(reached, RECALL_THRESHOLDS)
        total += best[at[at < len(best)]].sum()
    return total / (len(right) * len(RECALL_THRESHOLDS))


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


def _match(ious: Tensor, overlaps: _Floats) -> NDArray[np.bool_]:
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
