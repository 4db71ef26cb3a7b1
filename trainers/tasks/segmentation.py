"""The task segmentation: one class a pixel."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from strategies import IGNORED, Draws, Strategy, vary_dense
from trainers.data import Placing
from trainers.decoders import SEGMENTERS, Segmenter
from trainers.tasks.drawing import enlarged, palette, side_by_side
from trainers.tasks.regions import DRAWN, dice, iou_per_class, loss, mean_iou, pixel_accuracy, region_rows
from trainers.tasks.task import UNUSABLE_IF_DENSE, Answers, Dense, Task

# The share of the class's colour in a pixel's colour.
_OPACITY = 0.55
_UNCOUNTED = (128, 128, 128)


def _rows(model: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
    return region_rows(logits.float(), targets)


def _predicted(model: nn.Module, logits: Tensor) -> Tensor:
    """The likeliest class of each pixel, (B, S, S) uint8."""
    return logits.argmax(1).to(torch.uint8)


def _vary(images: Tensor, masks: Tensor, strategy: Strategy, draws: Draws) -> tuple[Tensor, Tensor]:
    return vary_dense(images, masks, "masks", strategy, draws)


def _draw(image: Tensor, target: Tensor, predicted: Tensor, classes: Sequence[str]) -> NDArray[np.uint8]:
    masks = (torch.where(target == IGNORED, IGNORED, mask) for mask in (target, predicted))
    return side_by_side([enlarged(image), *(_coloured(image, mask, len(classes)) for mask in masks)])


def _coloured(image: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """The image with a colour over each pixel, grey where pixels do not count; class 0, the background, has none."""
    from torchvision.utils import draw_segmentation_masks

    picture, classes = enlarged(image), enlarged(mask[None])[0]
    shown = [*range(min(1, num_classes - 1), num_classes), IGNORED]
    layers = torch.stack([classes == k for k in shown])
    drawn: Tensor = draw_segmentation_masks(picture, layers, _OPACITY, [*palette(len(shown) - 1), _UNCOUNTED])
    return drawn


def _legend(classes: Sequence[str]) -> dict[str, str]:
    """The colour of each class in pictures, as in CSS."""
    colours = [*(["transparent"] if len(classes) > 1 else []), *map(_in_css, palette(max(1, len(classes) - 1)))]
    return {**dict(zip(classes, colours, strict=True)), "(not counted)": _in_css(_UNCOUNTED)}


def _in_css(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()


def _answers(predicted: Tensor, classes: Sequence[str], places: Sequence[Placing]) -> Answers:
    """A PNG of class indices at the image's own size, as base64."""
    masks = [_png(place.mask_to_picture(mask.numpy())) for mask, place in zip(predicted, places, strict=True)]
    return {"mask": np.asarray(masks, dtype=object)}


def _png(mask: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


SEGMENTATION = Task(
    name="segmentation",
    metrics={"mean_iou": mean_iou, "dice": dice, "pixel_accuracy": pixel_accuracy, "loss": loss},
    lower_is_better=frozenset({"loss"}),
    shares=frozenset({"mean_iou", "dice", "pixel_accuracy"}),
    scale=lambda targets: None,
    answers=None,
    intervals={},
    drawn=DRAWN,
    unusable=UNUSABLE_IF_DENSE,
    dense=Dense(
        decoders=SEGMENTERS,
        make_top=Segmenter,
        rows=_rows,
        predicted=_predicted,
        vary=_vary,
        draw=_draw,
        legend=_legend,
        answers=_answers,
        example={"mask": "base64"},
        per_class=("iou", lambda rows, targets, num_classes: iou_per_class(rows)),
    ),
)
