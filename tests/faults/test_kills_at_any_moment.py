"""Commands that are killed at moments drawn uniformly over their whole life, and run again until they are complete.

``UNFREEZE_KILLS=200 pytest -s tests/faults/test_kills_at_any_moment.py`` kills 200 times, which takes some 20 minutes;
without the variable there are 12 kills, several in one study's life. A moment is a number of seconds of the command's
own processor time, so that it does not depend on what else the machine does. The kernel ends the process there by a
signal whose default action is that of ``kill -9``: no handler runs, nothing is written.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab import SMALL, Lab
from optuna.trial import FrozenTrial, TrialState

from search.scheduling import Ledger, ranked
from search.scheduling.original_order import first_attempts, uninterrupted
from search.storage import OUTCOME, PRESET, RETRY_OF, RUN_ID, SEED, WINNER
from search.tracking import CHECKPOINT_FILE
from search.winner import VERDICT

BY_HAND = "UNFREEZE_KILLS" in os.environ
KILLS = int(os.environ.get("UNFREEZE_KILLS", "12"))
EPOCHS, KEPT = 2, 2
STUDY: dict[str, Any] = {
    "strategy": SMALL["strategy"] | {"epochs": EPOCHS},
    "presets": {f"lr {lr:g}": {"depth": 1.0, "lr": lr} for lr in (1e-2, 1e-3, 1e-4)},
    "probe_sweep": 4,
    "sampler": {"name": "tpe", "startup_trials": 3},
    "metric": "loss",
    "retries": 99,
    "checkpoints": {"keep": KEPT, "every_minutes": 0.001},
    "confirm": {"seeds": 1, "top": 2},
    "champion": {"promote": True},
    "budget": {"trials": 5},
}
KINDS: dict[str, dict[str, Any]] = {
    "inline": STUDY,
    "rungs": STUDY | {"pruner": {"name": "rungs", "reduction": 2}},
    "workers": STUDY | {"executor": {"trials_per_device": 2}},
}
SHARES = {"inline": 0.4, "rungs": 0.4, "workers": 0.2} if BY_HAND else {"rungs": 0.7, "workers": 0.3}
# By hand the moments are uniform over the life. In the gate each process lives shorter, so that one study's life has
# room for many kills.
LONGEST = 1.0 if BY_HAND else 0.4
# By hand one process of so many imports for itself, as a user's does; the others are copies that have done so.
COLD = 8

COMMAND = """
import signal, sys, tempfile, time
moment, *sys.argv[1:] = sys.argv[1:]
if float(moment):
    signal.setitimer(signal.ITIMER_PROF, float(moment))
tempfile.tempdir = None
from search.run import main
code = main()
print(time.process_time(), file=sys.stderr)
sys.exit(code)
"""


def is_harmless(path: Path) -> bool:
    """Whether a kill in a moment of microseconds left this, which no later start within a minute can tell from others'.

    It is the file with which Python tries a temporary folder, or a folder that does not name its owner yet.
    """
    return not any(path.iterdir()) if path.is_dir() else path.read_bytes() in (b"", b"blat")


class Life:
    """A study that is killed and run again.

    Args:
        lab: Its folder.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.told: dict[int, FrozenTrial] = {}
        self.temporary = lab.folder / "tmp"
        self.temporary.mkdir()
        # The store's own migrations are part of a command's life.
        (lab.folder / "mlruns" / "mlflow.db").unlink()

    def start(self, moment: float = 0.0, is_cold: bool = False) -> "subprocess.Popen[str]":
        """Start the command, which is killed after so many seconds of its processor time; 0 for never."""
        arguments = [str(moment), f"study={self.lab.file}"]
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("TMPDIR", str(self.temporary))
            if not is_cold:
                return self.lab.start_code(COMMAND, *arguments)  # type: ignore[return-value]
            # This file's folder is not on the path of a process that is started anew.
            environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "") or str(sys.path[0])}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command = [sys.executable, "-c", COMMAND, *arguments]
            return subprocess.Popen(command, cwd=self.lab.folder, env=environment, **pipes)

    def is_complete(self, process: "subprocess.Popen[str]") -> bool:
        """Wait for the command's end; whether it came to its own end, and no trial that was told has changed."""
        out, err = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGPROF, -signal.SIGKILL), out + err
        self.wait_for_orphans()
        if (self.lab.folder / "mlruns" / "optuna.db").exists():
            with suppress(KeyError):
                now = {trial.number: trial for trial in self.lab.trials() if trial.state.is_finished()}
                assert {number: now.get(number) for number in self.told} == self.told
                self.told = now
        return process.returncode == 0

    def wait_for_orphans(self) -> None:
        """Until workers whose command was killed have noticed and ended."""
        end = time.monotonic() + 120
        while (left := list(self.processes())) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, left

    def processes(self) -> Iterator[psutil.Process]:
        """What runs in the study's folder."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.lab.folder):
                    yield process

    def tried(self) -> list[tuple[Any, ...]]:
        """What was tried, in order, under the numbers of an uninterrupted study."""
        return [
            (trial.params, trial.user_attrs.get(PRESET), trial.user_attrs[SEED], trial.state, trial.values)
            for trial in uninterrupted(self.lab.trials())
        ]

    def winner(self) -> dict[str, Any]:
        """The winner and the verdict on it, under the numbers of an uninterrupted study."""
        trials, attrs = self.lab.trials(), self.lab.study.user_attrs
        firsts = first_attempts(trials)
        places = {number: sorted(set(firsts)).index(first) for number, first in enumerate(firsts)}
        found = attrs[WINNER] | {"model_uri": None, "trial": places[attrs[WINNER]["trial"]]}
        for name in ("candidates", "trials", "asked"):
            found.pop(name)
        found["confirmed"] = [one | {"trial": places[one["trial"]]} for one in found["confirmed"]]
        return found | {"verdict": attrs[VERDICT]["name"]}

    def files(self) -> set[str]:
        """What lies in the temporary folder and the cache, with ``x`` for what names a run."""
        cache = self.lab.folder / "mlruns" / "cache"
        there = (*(path for path in self.temporary.iterdir() if not is_harmless(path)), *cache.rglob("*"))
        found = {str(path.relative_to(self.lab.folder)) for path in there}
        return {re.sub(r"lab-[0-9a-f]{8}", "lab-x", path) for path in found}

    def models(self) -> tuple[list[str], list[str], int]:
        """Status of each logged model, registered versions, and folders of models."""
        client = self.lab.client
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        models = client.search_logged_models(experiments)
        versions = [version.version for version in client.search_model_versions()]
        folders = list((self.lab.folder / "mlruns" / "artifacts").rglob("models/m-*"))
        return [str(model.status) for model in models], versions, len(folders)

    def differences(self, whole: "Life", is_same: bool) -> list[str]:
        """How this study differs from the uninterrupted one; ``is_same`` if the trials are to be the same."""
        left = self.files() - whole.files()
        if not is_same:
            # Other trials cut the model elsewhere.
            left = {path for path in left if not path.startswith(("mlruns/cache/activations/", "mlruns/cache/locks/"))}
        found: dict[str, tuple[Any, Any]] = {"models": (self.models(), whole.models()), "left behind": (left, set())}
        if is_same:
            found |= {"trials": (self.tried(), whole.tried()), "winner": (self.winner(), whole.winner())}
        differing = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
        return [f"{self.lab.folder}: {name}: {ours}, not {theirs}" for name, (ours, theirs) in differing.items()]


def complete(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def check_trials(lab: Lab) -> None:
    """Every trial was told, the budget is spent exactly, and every killed trial was tried again, once."""
    trials = lab.trials()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert Ledger(lab.study).counted == STUDY["budget"]["trials"]
    killed = [trial.number for trial in trials if trial.user_attrs.get(OUTCOME) == "killed"]
    assert Counter(trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs) == Counter(killed)


def check_runs(lab: Lab) -> None:
    """Every complete trial has its run with all that was logged; none is left running; the best have checkpoints."""
    runs = {run.info.run_id: run for run in lab.all_runs()}
    kept = {trial.number for trial in ranked(lab.study)[:KEPT]}
    assert "RUNNING" not in {run.info.status for run in runs.values()}
    assert lab.parent().info.status == "FINISHED"
    for trial in complete(lab.trials()):
        run = runs.pop(trial.user_attrs[RUN_ID])
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in lab.client.get_metric_history(run.info.run_id, "train_loss")]
        assert sorted(steps) == list(range(1, EPOCHS + 1))
        assert lab.artifact(run, CHECKPOINT_FILE).exists() == (trial.number in kept)
    assert not any(lab.artifact(run, CHECKPOINT_FILE).exists() for run in runs.values())
    confirmations = [run for run in runs.values() if run.data.tags.get("unfreeze.kind") == "confirmation"]
    confirmed = [run.data.tags["unfreeze.confirms"] for run in confirmations if run.info.status == "FINISHED"]
    assert sorted(confirmed) == sorted(set(confirmed))
    others = [run for run in runs.values() if run not in confirmations and run.info.run_id != lab.parent().info.run_id]
    assert {run.info.status for run in others} <= {"KILLED", "FAILED"}


def kill_by_time(life: Life, moment: float, is_cold: bool) -> bool:
    """Start the command to be killed at a moment; whether it was complete before."""
    return life.is_complete(life.start(moment, is_cold))


def kill_some(life: Life, draws: random.Random, moment: float) -> bool:
    """Start the command with its workers and kill it, a worker, or all of them; whether it was complete before."""
    process = life.start()
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
        return life.is_complete(process)
    workers = psutil.Process(process.pid).children(recursive=True)
    command = psutil.Process(process.pid)
    victims = draws.choice([[command], [command, *workers], draws.sample(workers, min(1, len(workers))) or [command]])
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
    if command not in victims:
        with suppress(subprocess.TimeoutExpired):
            process.wait(draws.uniform(0.0, moment))
        process.kill()
    return life.is_complete(process)


@pytest.fixture(scope="module")
def length_of(new_lab) -> Callable[[str], tuple[Life, float, float]]:
    """Gives an uninterrupted study of a kind, the processor time of its command, and how long it took."""

    @cache
    def of(kind: str) -> tuple[Life, float, float]:
        whole, began = Life(new_lab(**KINDS[kind])), time.monotonic()
        process = whole.start()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        check_trials(whole.lab)
        return whole, float(err.strip().splitlines()[-1]), time.monotonic() - began

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_whatever_is_killed_when_the_study_is_the_uninterrupted_one(new_lab, length_of, kind):
    draws = random.Random(kind)
    # Workers leave what a command by itself leaves.
    whole, computed, passed = length_of(next(iter(SHARES)) if kind == "workers" else kind)
    length = passed if kind == "workers" else computed
    left, lives, faults = round(KILLS * SHARES[kind]), 0, []
    # In the gate one study of each kind, even if it is complete early: another life would cost too much.
    while left and (BY_HAND or not lives):
        life, kills, lives = Life(new_lab(**KINDS[kind])), 0, lives + 1
        is_complete = False
        while left and not is_complete:
            moment = draws.uniform(0.0, length * LONGEST)
            if kind == "workers":
                is_complete = kill_some(life, draws, moment)
            else:
                is_cold = BY_HAND and draws.randrange(COLD) == 0
                is_complete = kill_by_time(life, moment * (3.0 if is_cold else 1.0), is_cold)
            kills += not is_complete
            left -= not is_complete
        if not is_complete:
            assert life.is_complete(life.start())
        print(f"{kind}: study {lives} is complete after {kills} kills, {left} kills are left", flush=True)
        check_trials(life.lab)
        check_runs(life.lab)
        faults += life.differences(whole, is_same=kind != "workers")
    assert not faults, faults
