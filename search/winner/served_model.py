"""The winner as MLflow serves it: images in, labels and probabilities (or numbers) out.

MLflow stores this file beside the weights and runs it where the model is loaded ("models from code"), so nothing is
pickled. It needs the packages ``trainers`` and ``strategies``, which are stored along with it.
"""

import base64
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from strategies import DataError, resize, tta_views
from trainers import (
    TASKS,
    Device,
    Fitting,
    Preprocessing,
    create_classifier,
    decode,
    dress,
    load_weights,
    placed,
    top_of,
)
from trainers.tasks import Answers, Dense, Scale

_BATCH = 64


class ImageModel(PythonModel):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Answers for images given as paths, encoded bytes, base64 text, or uint8 arrays (H, W, C)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the card and the weights."""
        #: Digests of the training and validation images, those of its ancestors among them; models of earlier versions
        #: have none.
        self.seen = np.load(context.artifacts["seen"]) if "seen" in context.artifacts else np.empty(0, dtype=np.uint64)
        self.card = card = json.loads(Path(context.artifacts["card"]).read_text())
        self.task = TASKS[card["task"]]
        self.classes: list[str] = card["classes"]
        self.scale = card["scale"] and Scale(**{name: torch.tensor(values) for name, values in card["scale"].items()})
        self.preprocessing = how = Preprocessing(**card["preprocessing"])
        self.tta: str = card["tta"]
        self.shown_size: int = card.get("shown_size", how.image_size)
        # Cards of earlier versions have none.
        self.temperature: float | None = card.get("temperature")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.computing = Device(self.device, card.get("precision", "fp32"))
        self.fitting = Fitting(_BATCH)
        self.mean, self.std = (torch.tensor(card[k], device=self.device).view(1, -1, 1, 1) for k in ("mean", "std"))
        model = create_classifier(card["model"], len(self.classes), how.image_size, how.in_chans)
        top = top_of(card["task"], card.get("decoder"), len(self.classes), how.image_size)
        if top is not None:
            model = dress(model, how.image_size, how.in_chans, top)
        model.load_state_dict(load_weights(Path(context.artifacts["weights"])))
        self.model = model.eval().to(self.device)

    def predict(self, context: PythonModelContext, model_input: list[Any], params: Any = None) -> Any:
        """One row an image: label and probabilities, the labels of a multilabel model, numbers, a mask, or boxes.

        A mask is a PNG of class indices at the image's size, as base64; boxes are left, top, right and bottom in the
        image's pixels.

        Raises:
            DataError: An image cannot be read; the message names it.
        """
        images = [_as_image(image) for image in model_input]
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        if self.task.dense is not None:
            return pd.DataFrame(self._dense_answers(self.task.dense, batches))
        assert self.task.answers is not None, "only dense tasks have none"
        parts = [self._outputs(batch) for batch in batches]
        outputs = torch.cat(parts) if parts else torch.zeros(0, len(self.classes))
        answers = self.task.answers(outputs, self.classes)
        if self.temperature is not None:
            calibrated = self.task.answers(outputs.double() / self.temperature, self.classes)
            # Labels, the only texts, come from the uncalibrated outputs: rounding must not change one.
            answers |= {name: column for name, column in calibrated.items() if column.dtype != object}
        return pd.DataFrame(answers)

    @torch.inference_mode()
    def _dense_answers(self, dense: Dense, batches: list[list[Any]]) -> Answers:
        parts = []
        for batch in batches:
            (predicted,) = self.fitting.rows_of(self._predicted, self._shown(batch))
            places = [placed(image, self.preprocessing) for image in batch]
            parts.append(dense.answers(predicted, self.classes, places))
        parts = parts or [dict.fromkeys(dense.example, np.empty(0, dtype=object))]
        return {name: np.concatenate([part[name] for part in parts]) for name in dense.example}

    def _predicted(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        assert self.task.dense is not None, "the caller has checked"
        with self.computing.autocast():
            return (self.task.dense.predicted(self.model, self.model(pixels)).cpu(),)

    def _shown(self, images: list[Any]) -> torch.Tensor:
        """The model's input for images, (B, C, S, S) float."""
        pixels = torch.from_numpy(np.stack([decode(image, self.preprocessing) for image in images]))
        shown = resize(pixels.to(self.device).float().div_(255), self.shown_size)
        batch: torch.Tensor = (shown - self.mean) / self.std
        return batch

    @torch.inference_mode()
    def _outputs(self, images: list[Any]) -> torch.Tensor:
        views = tta_views(self._shown(images), self.tta)
        outputs = torch.stack([self.fitting.rows_of(self._logits, view)[0] for view in views]).mean(0).cpu()
        restored: torch.Tensor = outputs if self.scale is None else self.scale.restore(outputs)
        return restored

    def _logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        with self.computing.autocast():
            return (self.model(pixels).float(),)


def _as_image(value: Any) -> Any:
    """An image as ``decode`` takes it: a path, bytes or an array."""
    if isinstance(value, list):
        return np.asarray(value, dtype=np.uint8)
    if not isinstance(value, str):
        return value
    if _exists(value):
        return Path(value)
    try:
        return base64.b64decode(value.rpartition("base64,")[2], validate=True)
    except ValueError as error:  # also of text that is not ASCII
        raise DataError(f"{value[:200]!r} is neither an image file nor base64") from error


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        # Too long for a file name, or with a null byte: base64 and no path.
        return False


mlflow.models.set_model(ImageModel())
