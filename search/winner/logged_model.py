"""The winner as an MLflow model: weights, a card that says how to use them, and the code that uses them."""

import base64
import hashlib
import importlib.metadata
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import infer_signature, set_signature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import ColSpec, Schema
from PIL import Image

import strategies
import trainers
from search.processes import temporary_files_in
from search.storage import is_outage, reason_of
from search.trials import CARD_FILE, SEEN_FILE, OpenStudy
from strategies import Strategy, shown_size
from trainers import SMP_SEGMENTERS, TASKS, ModelSource, State, Task, save_weights

# Packages that every logged model imports, by way of trainers and strategies too.
_NEEDED = (
    "lazy_loader",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tifffile",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
)

# Tag of a logged model: a digest of its files once it is whole. A process may be killed at any moment before.
_CONTENT_TAG, _UNFINISHED = "unfreeze.content", "unfinished"

logger = logging.getLogger(__name__)


def log_model(
    open_study: OpenStudy,
    source: ModelSource,
    run_id: str,
    weights: State,
    folder: Path,
    strategy: Strategy,
    temperature: float | None,
    test: Mapping[str, Any],
) -> str:
    """Log weights as a pyfunc model of a run and return its URI, unless the run has this model already.

    Models of the study that a killed process has left unfinished are removed. One process at a time may call this.

    Args:
        open_study: Gives data and task.
        source: The model's source.
        run_id: The run that gets the model.
        weights: State dict.
        folder: Temporary folder for the files.
        strategy: How the weights were trained; the served model uses the same views (``tta``).
        temperature: Divides the logits before they become probabilities; None for no division.
        test: The score on the test split, for the card: its metric, value, interval and images.
    """
    files = _write_files(open_study, source, weights, folder, strategy, temperature, test)
    content = _digest_of(run_id, files.values())
    client = MlflowClient()
    for model in _models_of(client, open_study.tracker.experiment_id):
        if model.tags[_CONTENT_TAG] == _UNFINISHED:
            _remove(client, model)
        elif model.tags[_CONTENT_TAG] == content:
            return str(model.model_uri)
    # MLflow has no type for paths, bytes and arrays together, so the hint is Any. MLflow warns of that each time, past
    # any filter; its warnings go to the log.
    with (
        temporary_files_in(folder),
        warnings.catch_warnings(record=True) as caught,
        mlflow.start_run(run_id=run_id),
    ):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={name: str(path) for name, path in files.items()},
            code_paths=[_copied(package, folder) for package in (strategies, trainers)],
            input_example=[_example_image(open_study)],
            pip_requirements=_requirements(open_study.config.model.decoder, source.packages),
            tags={_CONTENT_TAG: _UNFINISHED},
        )
        # The signature comes from the type hints of predict, which cannot name the output columns. Only its outputs
        # change: a new signature is not marked as coming from hints, and MLflow would then turn lists of arrays into
        # tables.
        signature = info.signature
        assert signature is not None, "predict has type hints"
        signature.outputs = _columns(TASKS[open_study.materials.data.task], open_study.materials.data.classes)
        set_signature(info.model_uri, signature)
    for warning in caught:
        logger.info("%s", warning.message)
    client.set_logged_model_tags(info.model_id, {_CONTENT_TAG: content})
    return str(info.model_uri)


def _write_files(
    open_study: OpenStudy,
    source: ModelSource,
    weights: State,
    folder: Path,
    strategy: Strategy,
    temperature: float | None,
    test: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the model's files, and return their paths by the names that the served model knows them by."""
    task = TASKS[open_study.materials.data.task]
    scale = task.scale(open_study.materials.data.train.targets)
    files: dict[str, Path] = {}
    if source.code is not None:
        files["code"] = Path(shutil.copy(source.code, folder))
    card = {
        "model": source.name,
        **{name: file.name for name, file in files.items()},
        "decoder": open_study.config.model.decoder,
        "task": task.name,
        "classes": list(open_study.materials.data.classes),
        "scale": None if scale is None else {"mean": scale.mean.tolist(), "std": scale.std.tolist()},
        "preprocessing": asdict(open_study.materials.data.preprocessing),
        "mean": source.mean,
        "std": source.std,
        "weights": source.weights.source,
        "shown_size": shown_size(open_study.materials.data.preprocessing.image_size, strategy),
        "tta": strategy.tta,
        "allow_paths": open_study.config.serve.allow_paths,
        "temperature": temperature,
        "precision": open_study.config.serve.precision,
        "scored_in": open_study.materials.device.precision,
        "test": test,
        "data": _about(open_study),
        "strategy": strategy.to_dict(),
        **open_study.materials.lineage.on_card(),
    }
    card_file = folder / CARD_FILE
    card_file.write_text(json.dumps(card, indent=1))
    seen_file = folder / SEEN_FILE
    own = [open_study.materials.data.digests[split] for split in ("train", "val")]
    np.save(seen_file, np.unique(np.concatenate([*own, open_study.materials.lineage.seen])))
    weights_file = folder / "weights.safetensors"
    save_weights(weights, weights_file)
    return {"weights": weights_file, "card": card_file, "seen": seen_file, **files}


def _about(open_study: OpenStudy) -> dict[str, Any]:
    """What the card says about the images; not where they lie, since a model may be passed on."""
    data = open_study.materials.data
    images = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    return {"source": open_study.config.data.source, "images": images, "fingerprint": data.fingerprint}


def _digest_of(run_id: str, files: Iterable[Path]) -> str:
    """Digest of a run's id and of files."""
    found = hashlib.sha256(run_id.encode())
    for path in files:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _models_of(client: MlflowClient, experiment_id: str) -> list[LoggedModel]:
    """The models that :func:`log_model` has logged to an experiment; those of earlier versions have no tag."""
    found: list[LoggedModel] = []
    token = None
    while True:
        page = client.search_logged_models([experiment_id], page_token=token)
        found += [model for model in page if _CONTENT_TAG in model.tags]
        token = page.token
        if not token:
            return found


def _remove(client: MlflowClient, model: LoggedModel) -> None:
    """Delete a logged model and its files; a store that does not allow this does not keep the study from its end."""
    # The folder of its artifacts is in a folder of its own.
    place = str(model.artifact_location).removesuffix("/artifacts")
    try:
        get_artifact_repository(place).delete_artifacts()  # type: ignore[no-untyped-call]
        client.delete_logged_model(model.model_id)
    except Exception as error:  # each store of artifacts has errors of its own
        if is_outage(error):
            raise
        logger.warning("logged model %s is unfinished, and cannot be removed: %s", model.model_id, reason_of(error))


def _columns(task: Task, classes: Sequence[str]) -> Schema:
    """Names and types of the columns of the model's answers."""
    if task.dense is not None:
        found: Schema = infer_signature(model_output=pd.DataFrame([task.dense.example])).outputs
        return found
    assert task.answers is not None, "only dense tasks have none"
    columns = task.answers(torch.zeros(0, len(classes)), classes)
    return Schema([ColSpec("string" if c.dtype == object else "double", name) for name, c in columns.items()])


def _copied(package: ModuleType, folder: Path) -> str:
    """A copy of a package's code, without the embedded weights: the model brings its own."""
    assert package.__file__ is not None
    source = Path(package.__file__).parent
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", "py.typed")
    return str(shutil.copytree(source, folder / source.name, ignore=ignored))


def _example_image(open_study: OpenStudy) -> str:
    """The first validation image as base64 of a PNG, or of a .npy if neither grey nor RGB, which JSON can carry."""
    images, _ = next(open_study.materials.data.val.batches(torch.tensor([0]), 1, torch.device("cpu")))
    pixels = images[0].permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    if pixels.shape[2] in (1, 3):
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    else:
        np.save(buffer, pixels)
    return base64.b64encode(buffer.getvalue()).decode()


def _requirements(decoder: str | None, packages: Sequence[str] = ()) -> list[str]:
    """Packages that the logged model needs, at the installed versions."""
    needed = (*_NEEDED, *packages, *(("segmentation_models_pytorch",) if decoder in SMP_SEGMENTERS else ()))
    # Package indexes do not have versions with a local part, such as +cu132.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in needed]
