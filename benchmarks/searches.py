"""Whole searches by the command, each in a process of its own, and what their scores come to."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
import psutil
import yaml
from scipy.stats import t

from benchmarks.machine import REPOSITORY
from search.storage import FINGERPRINT


@dataclass(frozen=True, slots=True)
class Run:
    """One search.

    Args:
        seconds: From the start of the command until all its processes had ended.
        best: Best validation accuracy of a trial.
        first_best: Seconds from the start until the first trial was told that is as good as the score looked for, by
            default ``best``; None if there was none.
        test: Test accuracy of the winner; None where it was not scored.
        strategies: Fingerprints of the strategies that ours trained, sorted; the plain loop notes none.
        trial_seconds: Of these, those within trials, from being asked for until being told.
    """

    seconds: float
    best: float
    first_best: float | None
    test: float | None
    strategies: tuple[str, ...]
    trial_seconds: float


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


def run(command: list[str], study: dict[str, Any], home: Path, sought: float | None = None) -> Run:
    """Search with a command, until it ends.

    Args:
        command: The command without the interpreter, ``{file}`` where the study's file is named.
        study: What is written to that file.
        home: An empty folder for it.
        sought: The score looked for.

    Raises:
        RuntimeError: The command failed; with the end of its log.
    """
    file = home / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    began = datetime.now()
    seconds = seconds_of([word.format(file=file) for word in command], home)
    found = optuna.load_study(study_name="study", storage=study["store"]["url"])
    trials, winner = found.trials, found.user_attrs.get("winner", {})
    scored = [(t.values[0], t.datetime_complete) for t in trials if t.values and t.datetime_complete]
    best = max(value for value, _ in scored)
    reached = [told for value, told in scored if value >= (best if sought is None else sought)]
    first_best = (min(reached) - began).total_seconds() if reached else None
    strategies = sorted(t.user_attrs[FINGERPRINT] for t in trials if FINGERPRINT in t.user_attrs)
    trial_seconds = sum(t.duration.total_seconds() for t in trials if t.duration is not None)
    return Run(seconds, best, first_best, winner.get("test_score"), tuple(strategies), trial_seconds)


def seconds_of(words: list[str], home: Path) -> float:
    """Seconds from the start of a Python command until the last of its processes has ended.

    Args:
        words: The command without the interpreter.
        home: Where it runs, and leaves its log.

    Raises:
        RuntimeError: It failed; with the end of its log.
    """
    log = home / "log.txt"
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process.wait()
        while left_behind(process.pid):
            time.sleep(0.01)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return time.perf_counter() - began


def left_behind(leader: int) -> list[int]:
    """Processes that the leader of a session has left behind."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder
