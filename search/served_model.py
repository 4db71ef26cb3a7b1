"""The winner as MLflow serves it: images in, labels and probabilities out.

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
from safetensors.torch import load_file

from strategies import DataError
from trainers import create_classifier, decode

_BATCH = 64


class ImageClassifier(PythonModel):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Classifies images given as paths, encoded bytes, base64 text, or uint8 arrays (H, W, 3)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the card and the weights."""
        card = json.loads(Path(context.artifacts["card"]).read_text())
        self.classes: list[str] = card["classes"]
        self.image_size: int = card["image_size"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mean, self.std = (torch.tensor(card[k], device=self.device).view(1, 3, 1, 1) for k in ("mean", "std"))
        model = create_classifier(card["model"], len(self.classes), self.image_size)
        model.load_state_dict(load_file(context.artifacts["weights"]))
        self.model = model.eval().to(self.device)

    def predict(self, context: PythonModelContext, model_input: list[Any], params: Any = None) -> Any:
        """Label, its probability, and the probability of every class, one row an image.

        Raises:
            DataError: An image cannot be read; the message names it.
        """
        rows = [
            self._probabilities(model_input[start : start + _BATCH]) for start in range(0, len(model_input), _BATCH)
        ]
        probabilities = np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)
        frame = pd.DataFrame(
            {
                "label": [self.classes[i] for i in probabilities.argmax(1)],
                "probability": probabilities.max(1, initial=0.0).astype(float),
            }
        )
        for i, name in enumerate(self.classes):
            frame[f"probability_{name}"] = probabilities[:, i].astype(float)
        return frame

    @torch.inference_mode()
    def _probabilities(self, images: list[Any]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([decode(_as_image(image), self.image_size) for image in images]))
        batch = (pixels.to(self.device).float().div_(255) - self.mean) / self.std
        found: np.ndarray = self.model(batch).float().softmax(1).cpu().numpy()
        return found


def _as_image(value: Any) -> Any:
    """What ``decode`` takes: a path, bytes or an array."""
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


mlflow.models.set_model(ImageClassifier())
