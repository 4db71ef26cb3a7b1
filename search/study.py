"""A study from its configuration to its answer: open or resume, run trials until the budget ends, crown the winner."""

import logging
import shlex
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

import optuna
import torch
from optuna import Study
from optuna.trial import TrialState

from search.config import StudyConfig
from search.identity import check_identity, check_space, identity
from search.outcome import CHECKPOINT, PRESET, REASON, RUN_ID, outcome_of
from search.recovery import open_storage, recover
from search.samplers import make_pruner, make_sampler
from search.terminal import Terminal
from search.tracking import Tracker, absolute_sqlite, fetch_uri, git_commit, without_password
from search.trial import Bench, ranked, run_trial
from search.winner import crown
from strategies import (
    ConfigError,
    Fixed,
    Strategy,
    TrialError,
    check_depths,
    check_optimizer_names,
    project,
    split_blocks,
)
from trainers import (
    TASKS,
    ModelSource,
    check_model_name,
    choose_device,
    find_weights,
    open_data,
)

PARENT_RUN, PRESETS_QUEUED = "mlflow_parent_run", "presets_queued"

logger = logging.getLogger(__name__)


class NoTrialFinishedError(TrialError):
    """The budget ended and no trial had completed."""


def run_study(config: StudyConfig) -> None:
    """Run or resume a study until its budget is spent, then print the ranking and log the winner as a model.

    Raises:
        UnfreezeError: Something in the configuration, data or weights is wrong; nothing was trained then.
        NoTrialFinishedError: Every trial failed.
        KeyboardInterrupt: After the running trial was queued again.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # We beat ourselves, in search.recovery.
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    warnings.filterwarnings("ignore", message="Some regimes for parameter")
    with _terminate_by_exit(), Terminal(config.metric) as terminal:
        bench = _prepare(config, terminal)
        try:
            # Recovered trials are told before runs are compared with them.
            for trial in recover(bench.study, config.retries):
                again = "is tried again" if outcome_of(trial) == "killed" else "has failed for good"
                terminal.say(f"trial {trial.number} had been killed; it {again}")
            _settle(bench)
            _queue_presets(bench)
            _run_trials(bench, terminal)
            _finish(bench, terminal)
        except Exception:
            bench.tracker.finish(bench.parent_run, "failed")
            raise
        except (KeyboardInterrupt, SystemExit):
            bench.tracker.finish(bench.parent_run, "killed")
            raise


def _prepare(config: StudyConfig, terminal: Terminal) -> Bench:
    """Check and open everything that trials share, the cheapest first."""
    space = config.space()
    check_model_name(config.model.name)
    check_optimizer_names(space)
    device = choose_device(config.device, config.precision)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    assert config.name is not None, "composition names every study"
    data = open_data(
        task=config.task, in_chans=config.model.in_chans, **config.data.model_dump(), progress=terminal.reading
    )
    weights = find_weights(
        config.model.name,
        config.model.weights,
        resolve_uri=lambda uri: fetch_uri(uri, config.tracking.uri),
        progress=terminal.downloading,
    )
    source = ModelSource(config.model.name, weights, len(data.classes), config.data.image_size, config.model.in_chans)
    num_blocks = len(split_blocks(source.build(0)))
    check_depths(space, num_blocks)

    # A study that is refused above or here leaves nothing behind in the stores.
    tracker = Tracker(config.tracking.uri, config.tracking.artifacts, config.name)
    study = _open_study(config)
    check_identity(study, identity(config, data, source))
    check_space(study, space)
    run_tags = {
        "unfreeze.study": config.name,
        "unfreeze.model": source.name,
        "unfreeze.weights": weights.source,
        "unfreeze.weights_digest": weights.digest,
        "unfreeze.data_fingerprint": data.fingerprint,
        "unfreeze.device": device.description,
        "mlflow.source.git.commit": git_commit(),
    }
    parent = tracker.open_parent(study.user_attrs.get(PARENT_RUN), config.name, {"unfreeze.kind": "study", **run_tags})
    study.set_user_attr(PARENT_RUN, parent)
    tracker.log_json(parent, "study.json", _to_show(config))
    terminal.say(f"Study   {config.name}: {len(study.get_trials(deepcopy=False))} trials so far, {device.description}")
    terminal.say(f"Data    {data.summary()}")
    terminal.say(f"Model   {source.name}, {num_blocks} blocks, weights {weights.source} ({weights.digest})")
    return Bench(config, space, source, data, device, num_blocks, study, tracker, parent, run_tags, terminal)


def _to_show(config: StudyConfig) -> dict[str, Any]:
    """The configuration without passwords."""
    content = config.model_dump(mode="json")
    content["store"]["url"] = without_password(config.store.url)
    content["tracking"]["uri"] = without_password(config.tracking.uri)
    return content


def _open_study(config: StudyConfig) -> Study:
    direction: Literal["minimize", "maximize"] = (
        "minimize" if config.metric in TASKS[config.task].lower_is_better else "maximize"
    )
    try:
        storage = open_storage(absolute_sqlite(config.store.url), retries=lambda: config.retries)
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            direction=direction,
            pruner=make_pruner(config.pruner),
            load_if_exists=True,
        )
    except Exception as error:  # each database driver has errors of its own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"store.url: {without_password(config.store.url)!r} cannot be opened: {first}") from error
    if study.direction.name.lower() != direction:
        raise ConfigError(
            f"study {study.study_name!r} has trials that would not be comparable: it was searched to "
            f"{study.direction.name.lower()} its metric; begin a new study with name={study.study_name}-2"
        )
    return study


def _settle(bench: Bench) -> None:
    """End every MLflow run that still shows as running though its trial is over, and drop checkpoints left behind."""
    trials = {str(t.number): t for t in bench.study.get_trials(deepcopy=False)}
    for run_id, number in bench.tracker.running().items():
        trial = trials.get(number)
        if run_id == bench.parent_run or (trial is not None and trial.state == TrialState.RUNNING):
            continue
        is_its_run = trial is not None and trial.user_attrs.get(RUN_ID) == run_id
        outcome = outcome_of(trial) if trial is not None and is_its_run else None
        if outcome != "complete":
            bench.tracker.delete_checkpoint(run_id)
        reason = trial.user_attrs.get(REASON, "") if trial is not None and outcome == "failed" else ""
        bench.tracker.finish(run_id, outcome or "killed", reason)
    for beaten in ranked(bench.study, bench.lower_is_better)[bench.config.checkpoints.keep :]:
        if beaten.user_attrs.get(CHECKPOINT):
            bench.tracker.delete_checkpoint(beaten.user_attrs[RUN_ID])


def _queue_presets(bench: Bench) -> None:
    """Queue the presets, moved into the space, as first trials; those queued by an earlier run are not queued again."""
    queued: dict[str, dict[str, Any]] = dict(bench.study.user_attrs.get(PRESETS_QUEUED, {}))
    for name, preset in bench.config.presets.items():
        params = project(Strategy.from_dict(preset), bench.space, bench.num_blocks)
        if name not in queued and params not in queued.values():
            queued[name] = params
            bench.study.set_user_attr(PRESETS_QUEUED, queued)
            bench.study.enqueue_trial(params, user_attrs={PRESET: name})


def _run_trials(bench: Bench, terminal: Terminal) -> None:
    budget = bench.config.budget
    deadline = time.monotonic() + budget.hours * 3600 if budget.hours is not None else None
    done = _counted(bench.study)
    terminal.study_started(done, budget.trials)
    while (budget.trials is None or done < budget.trials) and (deadline is None or time.monotonic() < deadline):
        # A killed trial and its next attempt are one, lest a study that was interrupted draws other strategies.
        asked = sum(outcome_of(t) != "killed" for t in bench.study.get_trials(deepcopy=False))
        bench.study.sampler = make_sampler(bench.config.sampler, bench.config.seed, asked)
        run_trial(bench)
        done = _counted(bench.study)


def _counted(study: Study) -> int:
    """Trials that count against the budget: told, and not killed, since a killed one is tried again."""
    return sum(outcome_of(t) not in (None, "killed") for t in study.get_trials(deepcopy=False))


def _finish(bench: Bench, terminal: Terminal) -> None:
    trials = bench.study.get_trials(deepcopy=False)
    best = ranked(bench.study, bench.lower_is_better)
    if not best:
        terminal.counts(trials)
        raise NoTrialFinishedError("no trial completed, so there is no winner")
    winner = crown(bench, best[0])
    searched = [name for name, entry in bench.space.items() if not isinstance(entry, Fixed)]
    terminal.table(best, searched)
    terminal.counts(trials)
    terminal.importances(_importances(bench.study))
    terminal.winner(winner, _how_to_look(bench.tracker.uri))
    bench.tracker.finish(bench.parent_run, "complete")


def _how_to_look(tracking_uri: str) -> str:
    if tracking_uri.startswith(("http://", "https://")):
        return f"open {without_password(tracking_uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_password(tracking_uri))}"


def _importances(study: Study) -> dict[str, float]:
    """Share of each field by Optuna's default evaluator; empty when trials are too few or all alike."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({t.value for t in complete}) == 1:
        return {}
    try:
        return optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError) as error:
        logger.info("importances cannot be estimated: %s", error)
        return {}


@contextmanager
def _terminate_by_exit() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that the running trial is queued again; the exit code is 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
