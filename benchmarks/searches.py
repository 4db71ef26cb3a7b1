"""Whole searches by the command, each in a process of its own, and what their scores come to."""

import math
import os
import signal
import sqlite3
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
        strategies: Fingerprints of the strategies that ours trained, sorted; the plain loop notes none.
        trial_seconds: Of these, those within trials, from being asked for until being told.
    """

    seconds: float
    best: float
    first_best: float | None
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


def run(
    command: list[str],
    study: dict[str, Any],
    home: Path,
    until: float | None = None,
    longest: float = math.inf,
) -> Run:
    """Search with a command, until it ends or a trial is told that is as good as ``until``.

    Args:
        command: The command without the interpreter, ``{file}`` where the study's file is named.
        study: What is written to that file.
        home: An empty folder for it.
        until: The score looked for.
        longest: Seconds after which that is not looked for any more, once any trial is told.

    Raises:
        RuntimeError: The command failed; with the end of its log.
    """
    file = home / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    words = [word.format(file=file) for word in command]
    began, end = datetime.now(), time.monotonic() + longest

    def is_over(sought: float) -> bool:
        best = best_told(home / "optuna.db")
        return best >= sought or (time.monotonic() > end and best > -math.inf)

    stop = None if until is None else lambda: is_over(until)
    seconds = seconds_of(words, home, stop)
    trials = optuna.load_study(study_name="study", storage=study["store"]["url"]).trials
    scored = [(t.values[0], t.datetime_complete) for t in trials if t.values and t.datetime_complete]
    best = max(value for value, _ in scored)
    reached = [told for value, told in scored if value >= (best if until is None else until)]
    first_best = (min(reached) - began).total_seconds() if reached else None
    strategies = sorted(t.user_attrs[FINGERPRINT] for t in trials if FINGERPRINT in t.user_attrs)
    trial_seconds = sum(t.duration.total_seconds() for t in trials if t.duration is not None)
    return Run(seconds, best, first_best, tuple(strategies), trial_seconds)


def seconds_of(words: list[str], home: Path, stop: Any = None) -> float:
    """Seconds from the start of a Python command until the last of its processes has ended.

    Args:
        words: The command without the interpreter.
        home: Where it runs, and leaves its log.
        stop: Looked at now and then; once true, the command is asked to end.

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
        stopped = False
        while process.poll() is None:
            if stop is None:
                process.wait()
            elif not stopped and stop():
                process.send_signal(signal.SIGTERM)
                stopped = True
            else:
                time.sleep(0.2)
        while left_behind(process.pid):
            time.sleep(0.01)
    if process.returncode != 0 and not stopped:
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


def best_told(database: Path) -> float:
    """Best score told so far; read without Optuna, which would make the tables that the search is about to make."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            (best,) = connection.execute("select max(value) from trial_values").fetchone()
    except sqlite3.OperationalError:
        return float("-inf")
    return float("-inf") if best is None else float(best)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder
