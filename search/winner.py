"""The end of a study: the winner's test score, and the winner as an MLflow model."""

import base64
import importlib.metadata
import io
import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import torch
from mlflow.models import set_signature
from mlflow.types import ColSpec, Schema
from optuna.trial import FrozenTrial
from PIL import Image
from safetensors.torch import load_file

import strategies
import trainers
from search.outcome import RUN_ID, STRATEGY
from search.trial import Bench
from strategies import Strategy
from trainers import TASKS, Trainer

WINNER = "winner"

# Packages that the logged model imports, by way of trainers and strategies too.
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Winner:
    """The best trial: its score on the untouched test split, with a 95% interval, and where its model is."""

    trial: int
    metric: str
    test_score: float
    test_low: float
    test_high: float
    test_images: int
    model_uri: str


def crown(bench: Bench, trial: FrozenTrial) -> Winner:
    """Score the winner on the test split, once, and log it as a model; a winner already crowned is returned as it was.

    Raises:
        UnfreezeError: Its checkpoint is gone.
    """
    known = bench.study.user_attrs.get(WINNER)
    if known is not None and known["trial"] == trial.number:
        return Winner(**known)
    run_id = trial.user_attrs[RUN_ID]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = bench.tracker.fetch_checkpoint(run_id, Path(folder))
        strategy = Strategy.from_dict(trial.user_attrs[STRATEGY])
        trainer = Trainer(bench.source, bench.data, strategy, bench.config.seed, bench.device)
        trainer.model.load_state_dict(load_file(checkpoint))
        outputs, targets = trainer.predict(bench.data.test)
        model_uri = _log_model(bench, run_id, checkpoint, Path(folder), strategy)
    task, metric = TASKS[bench.data.task], bench.config.metric
    found = task.scores(outputs, targets)
    low, high = task.interval(metric, outputs, targets)
    winner = Winner(trial.number, metric, found[metric], low, high, len(targets), model_uri)
    bench.tracker.log(run_id, metrics={f"test_{name}": value for name, value in found.items()})
    bench.tracker.log(
        bench.parent_run,
        metrics={"best_score": trial.value or 0.0, **{f"test_{name}": value for name, value in found.items()}},
        tags={"unfreeze.winner": trial.number, "unfreeze.model_uri": model_uri},
    )
    bench.study.set_user_attr(WINNER, asdict(winner))
    return winner


def _log_model(bench: Bench, run_id: str, checkpoint: Path, folder: Path, strategy: Strategy) -> str:
    """Log the checkpoint as a pyfunc model of the trial's run and return its URI."""
    task = TASKS[bench.data.task]
    scale = task.scale(bench.data.train.targets)
    card = {
        "model": bench.source.name,
        "task": task.name,
        "classes": list(bench.data.classes),
        "scale": None if scale is None else {"mean": scale.mean.tolist(), "std": scale.std.tolist()},
        "preprocessing": asdict(bench.data.preprocessing),
        "mean": bench.source.mean,
        "std": bench.source.std,
        "weights": bench.source.weights.source,
        "tta": strategy.tta,
        "strategy": strategy.to_dict(),
    }
    card_file = folder / "card.json"
    card_file.write_text(json.dumps(card, indent=1))
    columns = task.answers(torch.zeros(0, len(bench.data.classes)), bench.data.classes)
    outputs = Schema([ColSpec("string" if c.dtype == object else "double", name) for name, c in columns.items()])
    # Paths, bytes and arrays share no type that MLflow knows, so the hint is Any, of which it warns each time, past any
    # filter; what else it warns of is for the log.
    with warnings.catch_warnings(record=True) as caught, mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"weights": str(checkpoint), "card": str(card_file)},
            code_paths=[_copied(package, folder) for package in (strategies, trainers)],
            input_example=[_example_image(bench)],
            pip_requirements=_requirements(),
        )
    for warning in caught:
        logger.info("%s", warning.message)
    # The signature comes from the type hints of predict, which cannot say what the columns are. It must stay that very
    # one: MLflow would press lists of arrays into tables for any signature that is not marked as coming from hints.
    signature = info.signature
    assert signature is not None, "predict has type hints"
    signature.outputs = outputs
    set_signature(info.model_uri, signature)
    return str(info.model_uri)


def _copied(package: ModuleType, folder: Path) -> str:
    """A copy of a package's code, without the embedded weights: the model brings its own."""
    assert package.__file__ is not None
    source = Path(package.__file__).parent
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
    return str(shutil.copytree(source, folder / source.name, ignore=ignored))


def _example_image(bench: Bench) -> str:
    """The first validation image as base64 of a PNG, or of a .npy if neither grey nor RGB, which JSON can carry."""
    images, _ = next(bench.data.val.batches(torch.tensor([0]), 1, torch.device("cpu")))
    pixels = images[0].permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    if pixels.shape[2] in (1, 3):
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    else:
        np.save(buffer, pixels)
    return base64.b64encode(buffer.getvalue()).decode()


def _requirements() -> list[str]:
    """What the logged model needs, at the versions it was made with."""
    # A local part, such as +cu132, is not known to package indexes.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _NEEDED]
