"""A small study in a folder of its own, and what its stores hold afterwards."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from copies import Started, copies
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from optuna.trial import FrozenTrial, TrialState, create_trial

from search import compose_study
from search.config import StudyConfig
from search.reporting import Terminal
from search.run import main
from search.scheduling import Ledger
from search.storage import OWNER, outcome_of, score_of
from search.study import prepare, run_trials
from search.study.presets import _queue_presets
from search.study.probe_sweep import sweep_probes
from search.tracking import CHECKPOINT_FILE
from search.trials import OpenStudy, queue_lost, reconcile_runs, recover_trials

REPOSITORY = Path(__file__).resolve().parents[2]

# A timm model made for tests, on 64 digits: a trial takes a fraction of a second.
SMALL: dict[str, Any] = {
    "model": {"name": "test_resnet", "weights": "none"},
    "data": {"image_size": 32, "limit_train": 64, "limit_val": 64, "limit_test": 64},
    "strategy": {"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    | {"epochs": 1, "batch_size": 32},
    "presets": {},
    "probe_sweep": 0,
    "budget": {"trials": 2},
    "sampler": {"name": "tpe"},
    "pruner": {"name": "none"},
    "device": "cpu",
    "threads": 1,
}

# Runs a study and sends its process a signal at the n-th call of a function, before or after it.
ENDER = """
import os, sys
from importlib import import_module
from search.run import main

module, owner, name, when, count, number, *arguments = sys.argv[1:]
place, calls = import_module(module), 0
place = getattr(place, owner) if owner else place
call = getattr(place, name)

def ending(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count) and when == "before":
        os.kill(os.getpid(), int(number))
    result = call(*args, **kwargs)
    if calls == int(count) and when == "after":
        os.kill(os.getpid(), int(number))
    return result

setattr(place, name, ending)
sys.exit(main(arguments))
"""


class Lab:
    """A folder with a study file, an Optuna store and an MLflow store.

    Args:
        folder: Where everything lies.
        template: A migrated, empty MLflow database to copy, since making one takes seconds.
        changes: Sections of the study file that replace those of SMALL.
    """

    def __init__(self, folder: Path, template: Path, **changes: Any) -> None:
        self.folder = folder
        self.file = folder / "lab.yaml"
        self.optuna_url = f"sqlite:///{folder}/mlruns/optuna.db"
        self.mlflow_uri = f"sqlite:///{folder}/mlruns/mlflow.db"
        self.spools = folder / "mlruns" / "cache" / "spool"
        stores = {
            "store": {"url": self.optuna_url},
            "tracking": {"uri": self.mlflow_uri, "artifacts": str(folder / "mlruns" / "artifacts")},
        }
        study = {**SMALL, **stores, **changes}
        study["data"] = {"cache": str(folder / "mlruns" / "cache"), **study["data"]}
        self.file.write_text(yaml.safe_dump(study, sort_keys=False))
        self._started: list[Started] = []
        (folder / "mlruns").mkdir()
        shutil.copy(template, folder / "mlruns" / "mlflow.db")

    def run(self, *overrides: str) -> int:
        """Run or resume the study in this process and return the exit code."""
        return main([f"study={self.file}", *overrides])

    def train(self, *overrides: str) -> None:
        """Run or resume the study in this process as far as its last trial; see :func:`train`."""
        train(self.config(*overrides))

    def config(self, *overrides: str) -> StudyConfig:
        return compose_study([f"study={self.file}", *overrides])

    def start(self, *overrides: str, makes_tables: bool = False, leads: bool = False) -> Started:
        """Run or resume the study in a process of its own; with ``leads`` it is the first of a group, as in a shell."""
        if not makes_tables:
            # Made here, since who polls the trials meanwhile would make them too.
            self.storage  # noqa: B018
        group = "import os; os.setpgid(0, 0)\n" if leads else ""
        command = f"{group}import sys; from search.run import main; sys.exit(main())"
        return self.start_code(command, f"study={self.file}", *overrides)

    def start_code(self, code: str, *arguments: str) -> Started:
        """Run Python code in a process of its own."""
        # mlflow.set_tracking_uri would reach into the other process by a variable.
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        self._started.append(copies().start(code, arguments, self.folder, inherited | {"PYTHONPATH": str(REPOSITORY)}))
        return self._started[-1]

    def start_and_end(self, place: tuple[str, str, str, str, int], number: int, *overrides: str) -> Started:
        """Run or resume the study in a process that ends itself.

        Args:
            place: Module, class or "", function, "before" or "after", and the how manyth call of the function.
            number: Of the signal.
            overrides: As of :meth:`run`.
        """
        return self.start_code(ENDER, *map(str, place), str(number), f"study={self.file}", *overrides)

    def close(self) -> None:
        """End what was started here and that a test that has failed has left; workers follow their command."""
        for process in self._started:
            process.kill()
        if "storage" in self.__dict__:
            self.storage.engine.dispose()

    def wait_until(self, condition: Callable[[list[FrozenTrial]], bool], process: "subprocess.Popen[str]") -> None:
        """Poll the trials until the condition holds."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            assert process.poll() is None, process.communicate()
            found = [study for study in self.storage.get_all_studies() if study.study_name == "lab"]
            if found and condition(self.storage.get_all_trials(found[0]._study_id)):
                return
            time.sleep(0.1)
        raise AssertionError("it did not happen in time")

    @cached_property
    def storage(self) -> optuna.storages.RDBStorage:
        """The study's store, opened once, which takes longer than to read trials."""
        return optuna.storages.RDBStorage(self.optuna_url)

    @property
    def study(self) -> optuna.Study:
        return self.open("lab")

    def open(self, name: str) -> optuna.Study:
        """One of several studies in the store."""
        return optuna.load_study(study_name=name, storage=self.storage)

    def trials(self) -> list[FrozenTrial]:
        return self.study.trials

    def outcomes(self) -> list[str | None]:
        return [outcome_of(trial) for trial in self.trials()]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.mlflow_uri)

    def all_runs(self) -> list[Run]:
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(ids))

    def runs(self) -> dict[int, Run]:
        """The run of each trial by the trial's number."""
        tagged = [run for run in self.all_runs() if "unfreeze.trial" in run.data.tags]
        found = {int(run.data.tags["unfreeze.trial"]): run for run in tagged}
        assert len(found) == len(tagged), "two runs say that they are the same trial"
        return found

    def parent(self) -> Run:
        (found,) = [run for run in self.all_runs() if run.data.tags.get("unfreeze.kind") == "study"]
        return found

    def statuses(self) -> list[str]:
        """Status of each trial's run in the order of trials."""
        return [run.info.status for _, run in sorted(self.runs().items())]

    def artifact(self, run: Run, name: str) -> Path:
        return Path(run.info.artifact_uri.removeprefix("file://")) / name

    def checkpoints(self) -> set[int]:
        """Numbers of the trials whose checkpoint is on disk."""
        return {number for number, run in self.runs().items() if self.artifact(run, CHECKPOINT_FILE).exists()}

    def pretend_running(self, trial_number: int) -> Run:
        """Put a trial's run back to how it was before it was ended."""
        run = self.runs()[trial_number]
        self.client.delete_tag(run.info.run_id, "unfreeze.outcome")
        self.client.update_run(run.info.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        return run


def train(config: StudyConfig) -> None:
    """Run or resume a study in this process as far as its last trial.

    What ends a study (winner, logged model, plots, report) takes longer than trials as small as these. Tests that look
    at the end call :meth:`Lab.run`.
    """
    with Terminal(config.metric, costs=config.costs) as terminal:
        open_study = prepare(config, terminal)
        try:
            recover_trials(open_study)
            reconcile_runs(open_study)
            queue_lost(open_study)
            sweep_probes(open_study)
            _queue_presets(open_study)
            ledger = Ledger(open_study.study)
            terminal.study_started(ledger.counted, config.budget.trials)
            run_trials(open_study, ledger, lambda: True, terminal.say)
            open_study.tracker.finish(open_study.parent_run, "complete")
            open_study.tracker.flush()
        finally:
            open_study.tracker.close()


@contextmanager
def opened(lab: Lab, *overrides: str) -> Iterator[OpenStudy]:
    """The study, opened as a command does."""
    config = lab.config(*overrides)
    with Terminal(config.metric) as terminal:
        open_study = prepare(config, terminal)
        try:
            yield open_study
        finally:
            open_study.tracker.close()


def owners(lab: Lab) -> list[int]:
    """The processes that asked for trials, in the order of trials."""
    return [json.loads(trial.user_attrs[OWNER])["pid"] for trial in lab.trials() if OWNER in trial.user_attrs]


def train_both(trials: list[FrozenTrial]) -> bool:
    """Whether two trials are being trained."""
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    return sum(len(trial.intermediate_values) >= 2 for trial in running) == 2


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def open_to_others(family: list[psutil.Process]) -> dict[str, set[str]]:
    """Addresses at which processes listen and that other machines can reach, by name of the process.

    Raises:
        AssertionError: The processes do not listen at all.
    """
    heard = [
        (process.name(), ip_address(socket.laddr.ip))
        for process in family
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    ]
    assert heard
    found: dict[str, set[str]] = {}
    for name, address in heard:
        plain = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
        if not plain.is_loopback:
            found.setdefault(name, set()).add(str(address))
    return found


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for a command; its exit code and what it printed."""
    said = process.communicate(timeout=300)
    return process.returncode, *said


def is_counted(trial: FrozenTrial) -> bool:
    return outcome_of(trial) not in (None, "killed")


def scored(trials: list[FrozenTrial]) -> list[tuple[dict[str, Any], float | None]]:
    """Parameters and score of each trial that counts."""
    return [(trial.params, score_of(trial)) for trial in trials if is_counted(trial)]


def dead_owner() -> str:
    """What a process on this host wrote that has ended since."""
    process = copies().start("from search.processes import owner; print(owner())", [], REPOSITORY, os.environ)
    written = process.communicate()[0].strip()
    assert json.loads(written)["pid"] == process.pid
    return written


def abandoned_trial(study: optuna.Study, owner: str, params: dict[str, Any], **attrs: Any) -> FrozenTrial:
    """A trial that its process left running after it drew these parameters."""
    study.enqueue_trial(params, user_attrs=attrs)
    trial = study.ask()
    trial.suggest_float("depth", 0.0, 1.0)
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    trial.set_user_attr(OWNER, owner)
    return next(t for t in study.get_trials() if t.number == trial.number and t.state == TrialState.RUNNING)


def study_of(*values, directions=("maximize", "minimize")) -> optuna.Study:
    """A study with a trial for each value, or list of values."""
    study = optuna.create_study(directions=directions)
    for one in values:
        study.add_trial(create_trial(values=one if isinstance(one, list) else [one]))
    return study


def numbers(trials) -> list[int]:
    return [trial.number for trial in trials]
