"""The winner's answers for the test images, kept so that they can be shown and compared without the images."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from search.trials import OpenStudy
from search.winner import plots
from trainers import TASKS, Split

#: Artifacts of the study's run.
EVIDENCE_FILE, OUTPUTS_FILE = "winner/evidence.json", "winner/test_outputs.npz"
LEGEND_FILE = "winner/legend.json"
MISTAKES_FOLDER = "winner/mistakes"

_MISTAKES = 12
_PICTURE_SIDE = 160
_BINS = 15
# Points in a plot of truth against prediction.
_POINTS = 2000
# A matrix of more classes can be neither read nor drawn.
_MOST_CLASSES = 200


@dataclass(frozen=True, slots=True)
class Mistake:
    """One of the test images on which the model is most wrong.

    Args:
        image: Index in the test split.
        truth: The true answer.
        answer: The model's answer.
        probability: Probability of the model's answer; None where the task has none.
    """

    image: int
    truth: str
    answer: str
    probability: float | None


def evidence_of(
    task: str, outputs: Tensor, targets: Tensor, classes: Sequence[str], temperature: float | None
) -> dict[str, Any]:
    """Confusion, reliability and worst mistakes, as values that JSON can hold.

    Args:
        task: ``classification``, ``multilabel`` or ``regression``.
        outputs: (N, C) raw outputs, in the units of the targets.
        targets: (N,) int64 or (N, C) float32.
        classes: Names of the classes, or of the numbers.
        temperature: Divides the logits; None for no division.
    """
    scaled = outputs if temperature is None else outputs / temperature
    found: dict[str, Any] = {"task": task, "images": len(targets), "classes": list(classes), "temperature": temperature}
    return found | _OF_TASK[task](scaled, targets, classes)


def _of_classification(logits: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    probabilities = logits.double().softmax(1)
    sure, said = probabilities.max(1)
    wrong = (said != targets).nonzero().flatten()
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)[:_MISTAKES]].tolist()
    found: dict[str, Any] = {
        "reliability": _reliability(sure, (said == targets).double()),
        "mistakes": [
            asdict(Mistake(k, classes[int(targets[k])], classes[int(said[k])], sure[k].item())) for k in worst
        ],
    }
    count = len(classes)
    if count <= _MOST_CLASSES:
        # Without its checks, which take ten times as long as the counting.
        matrix = multiclass_confusion_matrix(said, targets, count, validate_args=False)
        found["confusion"] = matrix.tolist()
    return found


def _of_multilabel(logits: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    probabilities = logits.double().sigmoid()
    losses = F.binary_cross_entropy_with_logits(logits.double(), targets.double(), reduction="none").sum(1)
    said = probabilities >= 0.5
    wrong = (said != targets.bool()).any(1).nonzero().flatten()
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)[:_MISTAKES]].tolist()

    def names(row: Tensor) -> str:
        return ", ".join(name for name, has in zip(classes, row.tolist(), strict=True) if has) or "none"

    hits = (said & targets.bool()).sum(0).tolist()
    return {
        "reliability": _reliability(probabilities.flatten(), targets.double().flatten()),
        "mistakes": [asdict(Mistake(k, names(targets[k]), names(said[k]), None)) for k in worst],
        "per_class": [
            {"class": name, "images": int(have), "found": int(found), "said": int(claimed)}
            for name, have, found, claimed in zip(
                classes, targets.sum(0).tolist(), hits, said.sum(0).tolist(), strict=True
            )
        ],
    }


def _of_regression(outputs: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    spread = targets.double().std(0, unbiased=False).clamp_min(torch.finfo(torch.float32).tiny)
    off = ((outputs.double() - targets.double()) / spread).abs().sum(1)
    worst = off.argsort(descending=True, stable=True)[:_MISTAKES].tolist()

    def numbers(row: Tensor) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(classes, row.tolist(), strict=True))

    shown = torch.linspace(0, len(targets) - 1, min(len(targets), _POINTS)).long()
    return {
        "mistakes": [asdict(Mistake(k, numbers(targets[k]), numbers(outputs[k]), None)) for k in worst],
        "points": {
            name: {"truth": targets[shown, k].tolist(), "answer": outputs[shown, k].tolist()}
            for k, name in enumerate(classes)
        },
    }


def _reliability(sure: Tensor, hits: Tensor) -> list[dict[str, float]]:
    """Bins of equal width that hold answers: how many, their mean probability, and the share that is right.

    Args:
        sure: (N,) float64, probability of each answer.
        hits: (N,) float64, 1 where the answer is right, else 0.
    """
    # torchmetrics has such bins in private functions only; of its public calibration error they cannot be had.
    places = (sure * _BINS).ceil().long().sub(1).clamp(min=0)
    found = []
    for place in range(_BINS):
        inside = places == place
        if inside.any():
            found.append(
                {
                    "from": place / _BINS,
                    "to": (place + 1) / _BINS,
                    "count": int(inside.sum()),
                    "sure": sure[inside].mean().item(),
                    "right": hits[inside].mean().item(),
                }
            )
    return found


_OF_TASK: Mapping[str, Callable[[Tensor, Tensor, Sequence[str]], dict[str, Any]]] = {
    "classification": _of_classification,
    "multilabel": _of_multilabel,
    "regression": _of_regression,
}


def log_evidence(open_study: OpenStudy, outputs: Tensor, targets: Tensor, temperature: float | None) -> None:
    """Log the winner's answers for the test images to the study's run; of the pictures of a dense task, the legend."""
    run, tracker, dense = open_study.parent_run, open_study.tracker, TASKS[open_study.materials.data.task].dense
    if dense is not None and dense.legend is not None:
        tracker.log_json(run, LEGEND_FILE, dense.legend(open_study.materials.data.classes))
    if open_study.materials.data.task not in _OF_TASK:
        return
    found = evidence_of(
        open_study.materials.data.task, outputs, targets, open_study.materials.data.classes, temperature
    )
    buffer = io.BytesIO()
    # Empty without groups.
    groups = open_study.materials.data.groups.get("test", np.empty(0, np.int64))
    np.savez_compressed(buffer, outputs=outputs.numpy(), targets=targets.numpy(), groups=groups)
    tracker.log_file(run, OUTPUTS_FILE, buffer.getvalue())
    for mistake in found["mistakes"]:
        mistake["name"] = open_study.materials.data.test.names[mistake["image"]]
    tracker.log_json(run, EVIDENCE_FILE, found)
    for place, mistake in enumerate(found["mistakes"]):
        tracker.log_file(
            run, f"{MISTAKES_FOLDER}/{place}.png", picture_of(open_study.materials.data.test, mistake["image"])
        )
    for name, draw in plots.FIGURES.items():
        figure = draw(found)
        if figure is not None:
            tracker.log_file(run, f"winner/{name}.png", plots.as_png(figure))


def picture_of(split: Split, place: int) -> bytes:
    """A small PNG of a split's image; of more than three bands, the first three."""
    images, _ = next(split.batches(torch.tensor([place]), 1, torch.device("cpu")))
    pixels: NDArray[np.uint8] = images[0].permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0])
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
