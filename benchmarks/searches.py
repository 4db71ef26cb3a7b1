"""Whole searches by the command, each in a process of its own, and what their scores come to."""

import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import optuna
from scipy.stats import t


def test_score(folder: Path, name: str, study: str, seed: int, overrides: list[str]) -> float:
    """Run one study, its stores below ``folder``, and return its winner's test score."""
    store = f"sqlite:///{folder}/optuna.db"
    where = [
        f"store.url={store}",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"tracking.artifacts={folder}/artifacts",
        f"data.cache={folder}/cache",
        f"name={name}",
    ]
    command = [sys.executable, "-m", "search.run", f"study={study}", f"seed={seed}", f"data.split_seed={seed}"]
    # The sample of training images changes with the seed as well.
    subprocess.run([*command, *where, *overrides], check=True, stdout=subprocess.DEVNULL)
    return float(optuna.load_study(study_name=name, storage=store).user_attrs["winner"]["test_score"])


def summary(values: list[float]) -> str:
    """Mean and, of several values, the half width of its 95% interval (Student's t)."""
    if len(values) < 2:
        return f"{mean(values):.4f}"
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.4f} ± {half:.4f}"
