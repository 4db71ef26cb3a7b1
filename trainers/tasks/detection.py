"""The task detection: any number of boxes an image, each with a class."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from strategies import Draws, Strategy, vary_dense
from trainers.data import Placing
from trainers.decoders import DETECTORS, Detector
from trainers.tasks.box_draws import box_draws
from trainers.tasks.boxes import average_precision_per_class, map50, mar, mean_average_precision, scores
from trainers.tasks.drawing import enlarged, palette, side_by_side
from trainers.tasks.task import UNUSABLE_IF_DENSE, Answers, Dense, Task

# Boxes of lower scores are neither drawn nor served.
_SHOWN_SCORE = 0.5


def _predicted(model: Any, pyramid: Sequence[Tensor]) -> Tensor:
    found: Tensor = model.top.detections(pyramid)
    return found


def _loss(model: Any, pyramid: Sequence[Tensor], targets: Tensor) -> Tensor:
    found: Tensor = model.top.losses(pyramid, targets)
    return found


def _vary(images: Tensor, boxes: Tensor, strategy: Strategy, draws: Draws) -> tuple[Tensor, Tensor]:
    return vary_dense(images, boxes, "boxes", strategy, draws)


def _draw(image: Tensor, target: Tensor, predicted: Tensor, classes: Sequence[str]) -> NDArray[np.uint8]:
    sure = predicted[predicted[:, 5] >= _SHOWN_SCORE]
    return side_by_side([enlarged(image), *(_outlined(image, boxes, classes) for boxes in (target, sure))])


def _outlined(image: Tensor, boxes: Tensor, classes: Sequence[str]) -> Tensor:
    """The image with a rectangle and a name for each box (K, 5 or 6)."""
    from torchvision.utils import draw_bounding_boxes

    picture = enlarged(image)
    boxes = boxes[boxes[:, 4] >= 0]
    kinds = boxes[:, 4].long().tolist()
    colours = palette(len(classes))
    corners = boxes[:, :4] * (picture.shape[-1] / image.shape[-1])
    drawn: Tensor = draw_bounding_boxes(
        picture, corners, [classes[k] for k in kinds], [colours[k] for k in kinds], width=2
    )
    return drawn


def _answers(predicted: Tensor, classes: Sequence[str], places: Sequence[Placing]) -> Answers:
    """Boxes (left, top, right, bottom) in pixels of the image itself, their labels and scores, best first."""
    names = np.asarray(classes, dtype=object)
    answers: dict[str, list[Any]] = {"boxes": [], "labels": [], "scores": []}
    for found, place in zip(predicted, places, strict=True):
        kept = found[(found[:, 4] >= 0) & (found[:, 5] >= _SHOWN_SCORE)].double().numpy()
        answers["boxes"].append(place.boxes_to_picture(kept[:, :4]).tolist())
        answers["labels"].append(names[kept[:, 4].astype(np.int64)].tolist())
        answers["scores"].append(kept[:, 5].tolist())
    return {name: _column(values) for name, values in answers.items()}


def _column(values: list[Any]) -> NDArray[Any]:
    """A column whose cells are lists."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


DETECTION = Task(
    name="detection",
    metrics={
        "map": mean_average_precision,
        "map50": map50,
        "mar": mar,
    },
    lower_is_better=frozenset(),
    shares=frozenset({"map", "map50", "mar"}),
    scale=lambda targets: None,
    answers=None,
    intervals={},
    # Matching boxes takes seconds for so many.
    draws=1000,
    drawn={name: partial(box_draws, name) for name in ("map", "map50", "mar")},
    unusable=UNUSABLE_IF_DENSE,
    together=scores,
    dense=Dense(
        decoders=tuple(DETECTORS),
        make_top=Detector,
        rows=lambda model, pyramid, targets: _predicted(model, pyramid),
        predicted=_predicted,
        vary=_vary,
        draw=_draw,
        answers=_answers,
        example={"boxes": [[0.0, 0.0, 1.0, 1.0]], "labels": ["class"], "scores": [1.0]},
        per_class=("ap", average_precision_per_class),
        loss=_loss,
        # The finest stride of the pyramids in all three papers.
        finest_stride=4,
    ),
)
