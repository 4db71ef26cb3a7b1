"""Milliseconds a trial spent outside training, beside what plain Optuna and MLflow calls take for the same.

Three ways take turns, each with stores of its own that hold 100, 1,000 and 10,000 trials: the project's ``run_trial``,
and a plain loop (ask, suggest, report, should_prune, tell; create_run, three log_batch, log_artifacts, set_terminated,
each awaited), on SQLite as it comes and on SQLite with the project's settings. Training is a trainer that waits, as
for a GPU; the rest of the time counts. Each way runs its trials in blocks, at whose end everything is written.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch
from warnings import filterwarnings

import mlflow
import numpy as np
import optuna
import sqlalchemy
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from rich.console import Console
from rich.table import Table

from search import StudyConfig, compose_study
from search.processes import owner
from search.scheduling import Ledger, make_pruner, make_sampler, requeuing
from search.storage import DEPTH, FINGERPRINT, OWNER, RUN_ID, STRATEGY, AttributeWriter, open_storage, write_ahead
from search.study import claim
from search.tracking import PARENT_TAG, Event, Tracker, TrialRuns, TrialStarted, datasets_of
from search.trials import Materials, OpenStudy, rank_group_of, refresh, run_trial
from strategies import Strategy, sample
from trainers import EpochResult, ModelSource, Trainer, choose_device, find_weights, open_data

OURS, PLAIN, PLAIN_DEFAULT = "unfreeze", "plain calls, SQLite set as ours", "plain calls, SQLite as it comes"
STUDY = "bookkeeping"
# Trials that Optuna itself writes into the stores; the others are copies of them.
WRITTEN = 100
# What is copied, and the column that counts its rows, which the database fills.
RUN_TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")
TRIAL_TABLES = {
    "trial_params": "param_id",
    "trial_values": "trial_value_id",
    "trial_user_attributes": "trial_user_attribute_id",
    "trial_intermediate_values": "trial_intermediate_value_id",
}


class Waiting(Trainer):
    """A trainer that was built once, and waits instead of training."""

    template: Trainer
    epoch_seconds = 0.0
    waited = 0.0
    number = 0

    def __init__(self, source: ModelSource, data: Any, strategy: Strategy, *others: Any) -> None:
        self.__dict__ |= Waiting.template.__dict__
        self.strategy = strategy.canonical(source.num_blocks)

    def __iter__(self) -> Iterator[EpochResult]:
        for step, score in enumerate(scores(Waiting.number, self.strategy.epochs), start=1):
            began = time.perf_counter()
            time.sleep(Waiting.epoch_seconds)
            seconds = time.perf_counter() - began
            Waiting.waited += seconds
            yield EpochResult(step, metrics_of(score), seconds)


class Quiet:
    """Shows nothing."""

    def say(self, text: str) -> None: ...

    def reading(self, what: str, done: int, total: int) -> None: ...

    def downloading(self, what: str, done: int, total: int) -> None: ...

    def hear(self, event: Event) -> None:
        if isinstance(event, TrialStarted):
            Waiting.number = event.number


def scores(number: int, epochs: int) -> list[float]:
    """The same for the same trial, whoever trains it, so that as many are pruned."""
    noise = np.random.default_rng(number).random(epochs + 1)
    return [float(0.5 + 0.4 * noise[0] + 0.05 * noise[step] + 0.01 * step) for step in range(1, epochs + 1)]


def metrics_of(score: float) -> dict[str, float]:
    names = ("val_accuracy", "val_balanced_accuracy", "val_macro_f1")
    return {"train_loss": 1 - score, "lr": 1e-3, **dict.fromkeys(names, score), "val_loss": 1 - score}


@dataclass
class Side:
    """One way of keeping the books, and the seconds it took: a trial in each block, and each part of a trial."""

    run: Callable[[], None]
    reconcile_runs: Callable[[], None]
    trials: int = 0
    blocks: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def block(self, count: int) -> None:
        """Run some trials; the time that the trainer did not wait counts."""
        Waiting.waited = 0.0
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.run()
        self.reconcile_runs()
        self.blocks.append((time.perf_counter() - began - Waiting.waited) / count)
        self.cpu.append((time.process_time() - worked) / count)
        self.trials += count


def main() -> None:
    options = parse()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    with (
        tempfile.TemporaryDirectory(prefix="unfreeze-bookkeeping-") as folder,
        patch("search.trials.materials.Trainer", Waiting),
    ):
        result = {
            "epochs": options.epochs,
            "epoch_ms": options.epoch_ms,
            "sampler": options.sampler,
            "blocks": options.blocks,
            "block": options.block,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "optuna": optuna.__version__,
            "mlflow": mlflow.__version__,
            "ms_a_trial": measured(Path(folder), options),
        }
    show(result)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000], help="trials in the stores")
    parser.add_argument("--epochs", type=int, default=5, help="epochs a trial")
    parser.add_argument("--epoch-ms", type=float, default=20.0, help="milliseconds of training an epoch")
    parser.add_argument("--sampler", default="random", help="how strategies are chosen: random, tpe, ...")
    parser.add_argument("--blocks", type=int, default=7, help="blocks a way and size; their median counts")
    parser.add_argument("--block", type=int, default=8, help="trials a block")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


def measured(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Median milliseconds a trial of each way, by the number of trials in its stores."""
    found: dict[str, dict[str, Any]] = {}
    for size in options.trials:
        place = folder / str(size)
        sides = open_sides(place, size, options)
        for side in sides.values():
            # Caches are warm afterwards: Optuna has read the study, MLflow has planned its queries.
            side.block(3)
            side.blocks.clear()
            side.cpu.clear()
            side.parts.clear()
        for _ in range(options.blocks):
            for side in sides.values():
                side.block(options.block)
        found[str(size)] = {
            name: {
                "all": 1000 * statistics.median(side.blocks),
                "cpu": 1000 * statistics.median(side.cpu),
                "blocks": [1000 * seconds for seconds in side.blocks],
                "parts": {
                    name: 1000 * sum(took) / (options.blocks * options.block) for name, took in side.parts.items()
                },
            }
            for name, side in sides.items()
        }
    return found


def open_sides(folder: Path, size: int, options: argparse.Namespace) -> dict[str, Side]:
    config = compose_study(
        ["study=quickstart", f"name={STUDY}", "model.name=test_resnet", "model.weights=none", "data.image_size=32"]
        + [f"strategy.epochs={options.epochs}", f"sampler.name={options.sampler}", f"data.cache={folder}/cache"]
        + [f"{key}=64" for key in ("data.limit_train", "data.limit_val", "data.limit_test")]
        + ["pruner={name: median, startup_trials: 5, warmup_epochs: 1}", "device=cpu"]
    )
    data = open_data(task=config.task, in_chans=config.model.in_chans, **config.data.model_dump())
    name = config.model.names[0]
    source = ModelSource(name, find_weights(name, config.model.weights), len(data.classes), 32, config.model.in_chans)
    device = choose_device(config.device, config.precision)
    Waiting.template = Trainer(source, data, Strategy(depth=1.0, epochs=1), 0, device)
    Waiting.epoch_seconds = options.epoch_ms / 1000
    (folder / "template").mkdir(parents=True)
    fill(folder / "template", config, size)
    sides = {}
    for side, kind in ((OURS, "ours"), (PLAIN, "plain"), (PLAIN_DEFAULT, "default")):
        stores = folder / kind
        stores.mkdir()
        for file in ("optuna.db", "mlflow.db"):
            copy_database(folder / "template" / file, stores / file)
        if side == OURS:
            sides[side] = our_side(config, stores, source, data, device)
        else:
            sides[side] = plain_side(config, stores, source, is_set_as_ours=side == PLAIN)
    return sides


def our_side(config: StudyConfig, stores: Path, source: ModelSource, data: Any, device: Any) -> Side:
    tracker = Tracker(f"sqlite:///{stores}/mlflow.db", str(stores / "artifacts"), STUDY, stores / "spool")
    storage = open_storage(f"sqlite:///{stores}/optuna.db", requeuing(lambda: config.retries))
    study = optuna.load_study(study_name=STUDY, storage=storage, pruner=make_pruner(config.pruner))
    parent = tracker.open_parent(None, STUDY, {})
    spaces, sources = {source.name: config.space()}, {source.name: source}
    tags = {"unfreeze.study": STUDY, "unfreeze.device": device.description}
    lock = FileLock(stores / "claim.lock")
    materials = Materials(data, sources, device, None, None, None)
    quiet = Quiet()
    runs = TrialRuns(tracker, parent, tags, datasets_of(config.data, data), config.metric)
    open_study = OpenStudy(
        config=config,
        spaces=spaces,
        materials=materials,
        study=study,
        tracker=tracker,
        attributes=AttributeWriter(),
        parent_run=parent,
        run_tags=tags,
        watcher=quiet,
        listeners=(runs, quiet.hear),
        lock=lock,
        rank_group=rank_group_of(config, device),
    )
    ledger = Ledger(study)

    def run() -> None:
        refresh(open_study, ledger)
        ((asked, sampled),) = claim(open_study, ledger, None).items()
        run_trial(open_study, ledger, asked, sampled)

    return Side(run, tracker.flush)


def plain_side(config: StudyConfig, stores: Path, source: ModelSource, is_set_as_ours: bool) -> Side:
    urls = [f"sqlite:///{stores}/{file}" for file in ("optuna.db", "mlflow.db")]
    if is_set_as_ours:
        for url in urls:
            write_ahead(url)
    study = optuna.load_study(study_name=STUDY, storage=RDBStorage(urls[0]), pruner=make_pruner(config.pruner))
    client = mlflow.MlflowClient(tracking_uri=urls[1])
    experiment = client.get_experiment_by_name(STUDY).experiment_id
    parent = client.create_run(experiment).info.run_id
    space = config.space()
    side = Side(lambda: plain_trial(side, config, study, client, experiment, parent, space, source), lambda: None)
    return side


@contextmanager
def part(side: Side, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    side.parts[name].append(time.perf_counter() - began)


def plain_trial(
    side: Side,
    config: StudyConfig,
    study: optuna.Study,
    client: mlflow.MlflowClient,
    experiment: str,
    parent: str,
    space: Any,
    source: ModelSource,
) -> None:
    """One trial as a script of Optuna and MLflow would keep its books: everything at once, in the fewest calls."""
    with part(side, "Optuna: ask and suggest"):
        study.sampler = make_sampler(config.sampler, config.seed, side.trials)
        trial = study.ask()
        strategy = sample(space, trial)
    with part(side, "MLflow: run and parameters"):
        tags = {PARENT_TAG: parent, "unfreeze.trial": str(trial.number), "unfreeze.study": STUDY}
        run_id = client.create_run(experiment, run_name=f"trial {trial.number}", tags=tags).info.run_id
        params = [Param(name, str(value)) for name, value in strategy.to_dict().items()]
        client.log_batch(run_id, params=params, tags=[RunTag("mlflow.runName", f"{trial.number}")])
        trainer = Waiting(source, None, strategy)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "manifest.json").write_text(json.dumps(trainer.plan.manifest(), indent=1))
            (Path(folder) / "strategy.yaml").write_text(strategy.to_yaml())
            client.log_artifacts(run_id, folder)
    Waiting.number = trial.number
    metrics, best, state = [], 0.0, TrialState.COMPLETE
    for result in trainer:
        score, now = result.metrics["val_accuracy"], int(time.time() * 1000)
        best = max(best, score)
        took = {"epoch_seconds": result.seconds, "seconds": result.seconds}
        metrics += [Metric(name, value, now, result.step) for name, value in (result.metrics | took).items()]
        with part(side, "Optuna: report"):
            trial.report(score, result.step)
        with part(side, "Optuna: should_prune"):
            if result.step < strategy.epochs and trial.should_prune():
                state = TrialState.PRUNED
                break
    with part(side, "MLflow: metrics and end"):
        client.log_batch(run_id, metrics=metrics)
        client.log_batch(run_id, tags=[RunTag("unfreeze.outcome", state.name)])
        client.set_terminated(run_id, "FINISHED" if state == TrialState.COMPLETE else "KILLED")
    with part(side, "Optuna: tell"):
        study.tell(trial, best if state == TrialState.COMPLETE else None, state=state)


def fill(folder: Path, config: StudyConfig, size: int) -> None:
    """Make stores that hold ``size`` trials and their runs."""
    space = config.space()
    memory = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    url = f"sqlite:///{folder}/optuna.db"
    write_ahead(url)
    study = optuna.create_study(study_name=STUDY, storage=url, direction="maximize")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment(STUDY, artifact_location=(folder / "artifacts").as_uri())
    for number in range(min(size, WRITTEN)):
        asked = memory.ask()
        strategy = sample(space, asked)
        drawn = memory.get_trials(deepcopy=False)[-1]
        reached = scores(number, strategy.epochs)
        facts = {RUN_ID: f"{number:032x}", OWNER: owner(), STRATEGY: strategy.to_dict(), DEPTH: 1}
        study.add_trial(
            create_trial(
                value=max(reached),
                params=drawn.params,
                distributions=drawn.distributions,
                user_attrs={**facts, FINGERPRINT: strategy.fingerprint(3)},
                intermediate_values=dict(enumerate(reached, start=1)),
            )
        )
    copy_trials(folder / "optuna.db", min(size, WRITTEN), size)
    run_id = client.create_run(experiment, tags={f"tag{k}": "value" for k in range(15)}).info.run_id
    now = int(time.time() * 1000)
    params = [Param(name, str(value)) for name, value in strategy.to_dict().items()]
    metrics = [Metric(k, v, now, step) for step in range(1, 6) for k, v in metrics_of(0.5).items()]
    client.log_batch(run_id, metrics=metrics, params=params)
    client.set_terminated(run_id)
    copy_run(folder / "mlflow.db", run_id, size)


def copy_trials(database: Path, written: int, size: int) -> None:
    """Write the rows of the first trials again and again; Optuna's own calls would take minutes."""
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    offsets = [{"offset": offset} for offset in range(written, size, written)]
    with engine.begin() as connection:
        for table, counter in {"trials": "", **TRIAL_TABLES}.items():
            names = [column["name"] for column in sqlalchemy.inspect(connection).get_columns(table)]
            names = [name for name in names if name != counter]
            shifted = [f"{name} + :offset" if name in ("trial_id", "number") else name for name in names]
            copy = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(shifted)} FROM {table}"
            for offset in offsets:
                connection.execute(sqlalchemy.text(f"{copy} WHERE trial_id <= {written}"), offset)
    engine.dispose()


def copy_run(database: Path, run_id: str, count: int) -> None:
    """Write a run's rows many times under other ids."""
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        for table in RUN_TABLES:
            names = [column["name"] for column in sqlalchemy.inspect(connection).get_columns(table)]
            others = ", ".join(f'"{name}"' for name in names if name != "run_uuid")
            rows = [{"old": run_id, "new": f"{number:032x}"} for number in range(count)]
            copy = f"INSERT INTO {table} (run_uuid, {others}) SELECT :new, {others} FROM {table} WHERE run_uuid = :old"
            connection.execute(sqlalchemy.text(copy), rows)
    engine.dispose()


def copy_database(source: Path, target: Path) -> None:
    """Copy with whatever its log still holds."""
    with sqlite3.connect(source) as there, sqlite3.connect(target) as here:
        there.backup(here)
        # Each way opens it in its own.
        here.execute("PRAGMA journal_mode=DELETE")


def show(result: dict[str, Any]) -> None:
    title = "Milliseconds a trial outside training ({epochs} epochs of {epoch_ms:g} ms, sampler {sampler})"
    caption = "{cores} cores, median of {blocks} blocks of {block} trials; parts are means"
    table = Table(title=title.format(**result), caption=caption.format(**result))
    table.add_column("trials in the stores")
    sizes = result["ms_a_trial"]
    for size in sizes:
        table.add_column(f"{int(size):,}", justify="right")
    for name in (PLAIN_DEFAULT, PLAIN, OURS):
        table.add_row(name, *(f"{sizes[size][name]['all']:.1f}" for size in sizes))
    beyond = (sizes[size][OURS]["all"] - sizes[size][PLAIN]["all"] for size in sizes)
    table.add_row("unfreeze beyond plain calls, set as ours", *(f"{more:+.1f}" for more in beyond))
    table.add_section()
    for name in (PLAIN_DEFAULT, PLAIN, OURS):
        table.add_row(f"{name}, CPU of all threads", *(f"{sizes[size][name]['cpu']:.1f}" for size in sizes))
    table.add_section()
    for name in next(iter(sizes.values()))[PLAIN]["parts"]:
        table.add_row(f"plain calls, {name}", *(f"{sizes[size][PLAIN]['parts'][name]:.1f}" for size in sizes))
    Console().print(table)


if __name__ == "__main__":
    main()
