"""The winner as MLflow serves it: images in, labels and probabilities (or numbers) out.

MLflow stores this file beside the weights and runs it where the model is loaded ("models from code"), so nothing is
pickled. It needs the packages ``trainers`` and ``strategies``, which are stored along with it.
"""

import base64
import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
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


class BadImageError(MlflowException, DataError):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """An image that cannot be read. MLflow's server answers with the message and status 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The message; it stays as it is, since MLflow's server would put all images of the request before it."""
        return str(self.args[0])

    @message.setter
    def message(self, value: str) -> None:
        """Do nothing."""


class _Images:
    """Answers for images given as :class:`Path`, encoded bytes, base64 text, or uint8 arrays (H, W, C).

    Text that names a file is taken only where the study said ``serve.allow_paths``, since a client of MLflow's server
    could name any file of the server. :class:`Path` cannot come from a client.
    """

    allows_paths = False

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
        self.allows_paths = bool(card.get("allow_paths"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.computing = Device(self.device, card.get("precision", "fp32"))
        self.fitting = Fitting(_BATCH)
        self.mean, self.std = (torch.tensor(card[k], device=self.device).view(1, -1, 1, 1) for k in ("mean", "std"))
        code = Path(context.artifacts["code"]) if "code" in context.artifacts else None
        model = create_classifier(card["model"], len(self.classes), how.image_size, how.in_chans, code)
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
            BadImageError: An image cannot be read; the message names it, or its place in the list.
        """
        images = [self._as_image(image, place) for place, image in enumerate(model_input)]
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        if self.task.dense is not None:
            return pd.DataFrame(self._dense_answers(self.task.dense, batches))
        assert self.task.answers is not None, "only dense tasks have none"
        parts = [self._outputs(batch, place * _BATCH) for place, batch in enumerate(batches)]
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
        for number, batch in enumerate(batches):
            (predicted,) = self.fitting.rows_of(self._predicted, self._shown(batch, number * _BATCH))
            places = [placed(image, self.preprocessing) for image in batch]
            parts.append(dense.answers(predicted, self.classes, places))
        parts = parts or [dict.fromkeys(dense.example, np.empty(0, dtype=object))]
        return {name: np.concatenate([part[name] for part in parts]) for name in dense.example}

    def _predicted(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        assert self.task.dense is not None, "the caller has checked"
        with self.computing.autocast():
            return (self.task.dense.predicted(self.model, self.model(pixels)).cpu(),)

    def _shown(self, images: list[Any], first: int) -> torch.Tensor:
        """The model's input for images, (B, C, S, S) float; ``first`` is the place of the first one."""
        decoded = [self._decoded(image, place) for place, image in enumerate(images, start=first)]
        pixels = torch.from_numpy(np.stack(decoded))
        shown = resize(pixels.to(self.device).float().div_(255), self.shown_size)
        batch: torch.Tensor = (shown - self.mean) / self.std
        return batch

    def _decoded(self, image: Any, place: int) -> Any:
        try:
            return decode(image, self.preprocessing)
        except DataError as error:
            # The message names a file already.
            name = "" if isinstance(image, Path) else f"image {place + 1}: "
            raise BadImageError(f"{name}{error}") from error

    @torch.inference_mode()
    def _outputs(self, images: list[Any], first: int = 0) -> torch.Tensor:
        views = tta_views(self._shown(images, first), self.tta)
        outputs = torch.stack([self.fitting.rows_of(self._logits, view)[0] for view in views]).mean(0).cpu()
        restored: torch.Tensor = outputs if self.scale is None else self.scale.restore(outputs)
        return restored

    def _logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        with self.computing.autocast():
            return (self.model(pixels).float(),)

    def _as_image(self, value: Any, place: int) -> Any:
        """An image as ``decode`` takes it: a path, bytes or an array."""
        if isinstance(value, list):
            try:
                return np.asarray(value, dtype=np.uint8)
            except (ValueError, TypeError, OverflowError) as error:
                raise BadImageError(f"image {place + 1}: not an array (H, W, C) of numbers from 0 to 255") from error
        if not isinstance(value, str):
            return value
        if self.allows_paths and _exists(value):
            return Path(value)
        try:
            return base64.b64decode(value.rpartition("base64,")[2], validate=True)
        except ValueError as error:  # also of text that is not ASCII
            taken = "neither an image file nor base64" if self.allows_paths else "not base64"
            # Whether there is such a file is nothing for a client.
            hint = "" if self.allows_paths else "; files are taken by name only with serve.allow_paths=true"
            raise BadImageError(f"image {place + 1}: {value[:200]!r} is {taken}{hint}") from error


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        # Too long for a file name, or with a null byte: base64 and no path.
        return False


# MLflow has no type for paths, bytes and arrays together, so the hint of predict is Any. MLflow warns of that when a
# class is made, past any filter.
with warnings.catch_warnings(record=True):

    class ImageModel(_Images, PythonModel):  # type: ignore[misc, no-any-unimported, unused-ignore]
        """The model as MLflow takes it."""

        predict = _Images.predict


mlflow.models.set_model(ImageModel())
