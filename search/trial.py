"""One trial from ask to tell: sample a strategy, train it epoch by epoch, report, prune, keep the checkpoint."""

import hashlib
import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial
from torch import Tensor, nn

from search.config import Cost, StudyConfig
from search.datasets import datasets_of
from search.going_on import Snapshots, drop_snapshots, go_on
from search.ledger import Ledger
from search.locks import Lock
from search.machine_load import MachineLoad
from search.outcome import (
    ATTEMPT,
    CHECKPOINT,
    DEPTH,
    ENDINGS,
    FINGERPRINT,
    MODEL,
    OUT_OF_MEMORY,
    OUTCOME,
    OWNER,
    PRESET,
    REASON,
    RUN_ID,
    SEED,
    SPARED,
    STRATEGY,
    Outcome,
    score_of,
)
from search.pausing import RUNGS, pause, seed_before, short_epochs
from search.recovery import Heartbeat, attempt_of, interrupt, owner, requeue
from search.stopping import stop_if_asked
from search.team import RankLostError, Team, make_trainer
from search.time_limit import time_limit
from search.tracking import Tracker
from search.writer import NoRoomError
from strategies import Plan, Space, Strategy, TrialError, UnfreezeError, sample
from trainers import (
    TASKS,
    Compiler,
    Device,
    EpochResult,
    ImageData,
    ModelSource,
    Reuse,
    Teacher,
    Trainer,
    free_memory,
    is_out_of_memory,
    leave_onednn_if_broken,
    pictures,
)


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def reading(self, what: str, done: int, total: int) -> None:
        """How far something has come that all trials wait for."""

    def downloading(self, what: str, done: int, total: int) -> None:
        """How far a download has come, in bytes."""

    def trial_started(self, number: int, strategy: Strategy, label: str) -> None:
        """A trial was sampled and begins to train."""

    def epoch_ended(self, result: EpochResult, score: float) -> None:
        """An epoch of the running trial ended."""

    def trial_ended(self, trial: FrozenTrial, best: float | None) -> None:
        """The trial was told; ``best`` is the study's best score."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all trials of a study share; ``spaces`` and ``sources`` by the model's name.

    Who asks for trials, or queues them again, holds ``lock``: others do so too.
    """

    config: StudyConfig
    spaces: Mapping[str, Space]
    sources: Mapping[str, ModelSource]
    data: ImageData
    device: Device
    study: Study
    tracker: Tracker
    parent_run: str
    run_tags: Mapping[str, str]
    watcher: Watcher
    teacher: Teacher | None
    reuse: Reuse | None
    compiler: Compiler | None
    lock: Lock
    team: Team
    #: When, on ``time.monotonic``, the hours are over.
    deadline: float = math.inf

    @property
    def lower_is_better(self) -> bool:
        """Whether the study minimises its metric."""
        return self.config.metric in TASKS[self.config.task].lower_is_better

    @property
    def is_out_of_time(self) -> bool:
        """Whether the hours are over, and what is being trained then is not trained to its end."""
        return not self.config.budget.finish_trials and time.monotonic() >= self.deadline

    @property
    def paused(self) -> Path:
        """Folder of what paused trials need to go on; its name is this study's alone, whatever shares the cache."""
        return self._folder("paused")

    @property
    def snapshots(self) -> Path:
        """Folder of what running trials leave, lest they are killed."""
        return self._folder("running")

    def _folder(self, kind: str) -> Path:
        return Path(self.config.data.cache) / kind / f"{self.config.name}-{self.parent_run[:8]}"

    @property
    def chooses_model(self) -> bool:
        """Whether the model is searched too."""
        return len(self.sources) > 1

    @property
    def first_source(self) -> ModelSource:
        """What builds the first of the models that the study names."""
        return self.sources[self.config.model.names[0]]

    def source_of(self, trial: FrozenTrial) -> ModelSource:
        """What built the model of a trial."""
        return self.sources[trial.params[MODEL]] if self.chooses_model else self.first_source


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A trial that was asked for, and what the run is known by that it is logged to."""

    trial: Trial
    run: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a trial is to train.

    Args:
        source: Builds the model.
        strategy: As it was sampled.
        seed: Of the training.
        fingerprint: Of the strategy on this model.
    """

    source: ModelSource
    strategy: Strategy
    seed: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended: the values of a complete one, the reason of a failed one."""

    outcome: Outcome
    values: list[float] | None = None
    reason: str = ""


@dataclass(slots=True)
class _Best:
    """The best epoch so far of one trial; ``shown`` is what the model says of the images that are shown, if any."""

    score: float
    epoch: int
    state: dict[str, Tensor]
    shown: Tensor | None = None


class PrunedError(Exception):
    """The pruner stopped the trial; the message says where, if more is to be said of it."""


class OutOfTimeError(Exception):
    """The search's hours are over, and the trial is to go on another time."""


class Record:
    """What a trial's epochs have come to; each is logged and reported as it is added.

    Args:
        bench: What the study's trials share.
        asked: The trial.
        epochs: How many it has.
        parameters_trained: Numbers of the model that are trained in some epoch.
        spared: Seconds that reading what is frozen spares in an epoch.
    """

    def __init__(self, bench: Bench, asked: Asked, epochs: int, parameters_trained: int, spared: float = 0.0) -> None:
        self._bench = bench
        self._asked = asked
        self._epochs = epochs
        self._spared = spared
        self._costs: dict[Cost, float] = {"seconds": 0.0, "parameters_trained": parameters_trained}
        self._best: _Best | None = None
        self._load = MachineLoad()
        self.results: list[EpochResult] = []
        bench.tracker.log(asked.run, metrics={"parameters_trained": parameters_trained})

    def add(
        self,
        result: EpochResult,
        weights: Callable[[], dict[str, Tensor]],
        look: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        """Take a result, and if it is of the best epoch so far the weights and what is shown of it.

        Raises:
            TrialError: The score is not a number.
            PrunedError: The pruner stops the trial here.
            KeyboardInterrupt, SystemExit: A signal asked for it.
        """
        stop_if_asked()
        score = self._score(result)
        if math.isnan(score):
            raise TrialError(f"validation {self._bench.config.metric} is not a number after epoch {result.epoch:g}")
        best = self._best
        # Looks within epochs are for the pruner alone: of more looks the best would be better by chance.
        if result.ends_epoch and (
            best is None or (score < best.score if self._bench.lower_is_better else score > best.score)
        ):
            self._best = _Best(score, int(result.epoch), weights(), look())
        self._write(result)
        self.prune_if_due()

    def restore(self, results: Sequence[EpochResult], best: Mapping[str, Any]) -> None:
        """Take what another trial came to with which this one goes on: its results, and its :attr:`best` as a mapping.

        Each result is logged and reported as if it were new, but prunes nothing.
        """
        self._best = _Best(**best)
        for result in results:
            self._write(result)

    def _score(self, result: EpochResult) -> float:
        return result.metrics[f"val_{self._bench.config.metric}"]

    def _write(self, result: EpochResult) -> None:
        self.results.append(result)
        self._costs["seconds"] += result.seconds
        # The seconds so far in each epoch, so that a trial that is stopped has them too.
        found = {**result.metrics, "epoch_seconds": result.seconds, "seconds": self._costs["seconds"]}
        if result.parts > 1:
            found["epoch"] = result.epoch
        self._bench.tracker.log(self._asked.run, step=result.step, metrics=found | self._load.metrics())
        score = self._score(result)
        self._bench.watcher.epoch_ended(result, score)
        # Optuna 5.0 takes reports for one objective only.
        if not self._bench.config.costs:
            self._asked.trial.report(score, result.step)

    def prune_if_due(self) -> None:
        """Ask the pruner about the last result.

        Raises:
            PrunedError: The trial is to be stopped.
        """
        config = self._bench.config
        # Stopping after the last epoch would save nothing and lose the trial's score. Where nothing is pruned Optuna
        # would still read the trial, for some 5 ms.
        if config.costs or config.pruner.name == "none" or self.results[-1].epoch >= self._epochs:
            return
        if self._asked.trial.should_prune():
            raise PrunedError

    @property
    def best(self) -> _Best:
        """The best epoch."""
        assert self._best is not None, "a strategy has at least one epoch"
        return self._best

    @property
    def seconds_spared(self) -> float:
        """How much longer the epochs so far would have taken without reading what is frozen, as estimated."""
        return self._spared * self.results[-1].epoch if self.results else 0.0

    @property
    def values(self) -> list[float]:
        """What is told of the trial: its best score, and its costs."""
        return [self.best.score, *(self._costs[cost] for cost in self._bench.config.costs)]


def run_trial(bench: Bench, ledger: Ledger, asked: Asked, sampled: Sampled | Exception) -> FrozenTrial:
    """Train one strategy and tell the result.

    A trial that goes wrong is told as failed with its reason. One that is interrupted (Ctrl-C, SIGTERM) is told as
    killed and queued again before the interrupt is passed on.

    Args:
        bench: What the study's trials share.
        ledger: The study's, which takes the trial in when it was told.
        asked: The trial.
        sampled: What it is to train, or why that cannot be sampled.

    Raises:
        WriteError: MLflow cannot even be told that the trial failed. It is not told then, so that it is tried again.
    """
    with Heartbeat(asked.trial):
        try:
            ending = attempt(bench, ledger, asked, lambda: _train_in_time(bench, asked, sampled))
        except (KeyboardInterrupt, SystemExit):
            kill_asked(bench, asked)
            raise
        except OutOfTimeError:
            return _put_back(bench, ledger, asked)
    return tell(bench, ledger, asked, ending)


def _put_back(bench: Bench, ledger: Ledger, asked: Asked) -> FrozenTrial:
    """Tell a trial as killed and queue it again, since the hours are over; its state is on disk."""
    kill_asked(bench, asked)
    refresh(bench, ledger)
    told = bench.study.get_trials(deepcopy=False)[asked.trial.number]
    bench.watcher.trial_ended(told, score_of(ledger.ranked[0]) if ledger.ranked else None)
    bench.watcher.say(f"The hours are over: trial {told.number} goes on next time")
    return told


def ask(bench: Bench) -> Asked:
    """Ask for the next trial and begin its run."""
    trial = bench.study.ask()
    trial.set_user_attr(OWNER, owner())
    run = bench.tracker.start_trial(
        bench.parent_run, f"trial {trial.number}", {"unfreeze.trial": trial.number, **bench.run_tags}
    )
    # Where MLflow is away, the run's key.
    bench.tracker.writer.put(lambda: _note(trial, {RUN_ID: bench.tracker.known_id(run)}))
    return Asked(trial, run)


def kill_asked(bench: Bench, asked: Asked) -> None:
    """Tell a trial as killed and queue it again, since its user or scheduler stopped it."""
    # First, since attributes that still wait to be written could not be once it is told.
    bench.tracker.try_to_finish(asked.run, "killed")
    with bench.lock:
        trials = bench.study.get_trials(deepcopy=False)
        interrupt(bench.study, next(trial for trial in trials if trial.number == asked.trial.number))


def attempt(bench: Bench, ledger: Ledger, asked: Asked, trained: Callable[[], Record]) -> Ended:
    """Train a trial, and write what it came to: its checkpoint if that is kept, or why it went wrong.

    Args:
        bench: What the study's trials share.
        ledger: The study's.
        asked: The trial.
        trained: Trains it; what it raises is how the trial ends.
    """
    try:
        record = trained()
        best = record.best
        bench.tracker.log(asked.run, metrics={"score": best.score, "best_epoch": best.epoch})
        if best.shown is not None and ledger.would_be_kept(record.values, 1):
            for run in (asked.run, bench.parent_run):
                bench.tracker.log_pictures(run, pictures(bench.data, best.shown))
        if ledger.would_be_kept(record.values, bench.config.checkpoints.keep):
            asked.trial.set_user_attr(CHECKPOINT, bench.tracker.save_checkpoint(asked.run, best.state))
        bench.tracker.log_outcome(asked.run, "complete")
        bench.tracker.flush()
        return Ended("complete", record.values)
    except PrunedError as end:
        return Ended("pruned", reason=str(end))
    except RankLostError as lost:
        earlier = int(asked.trial.user_attrs.get(ATTEMPT, 0))
        if earlier < bench.config.retries:
            return Ended("killed", reason=str(lost))
        return Ended("failed", reason=f"{lost}, at attempt {earlier + 1} of {earlier + 1}")
    except (NoRoomError, OutOfTimeError):
        # It is no fault of the trial's, which is tried again once there is room, or time.
        raise
    except Exception as error:
        bench.tracker.log_text(asked.run, "traceback.txt", traceback.format_exc())
        leave_onednn_if_broken(error)
        ended = Ended("failed", reason=reason_of(error))
    # Not before: the error holds what the trial has computed, which the next one may need the room of.
    free_memory()
    return ended


def open_trial(bench: Bench, ledger: Ledger, asked: Asked, alike: Mapping[str, int]) -> Sampled:
    """Sample a trial's strategy and log it.

    Args:
        bench: What the study's trials share.
        ledger: The study's.
        asked: The trial.
        alike: By fingerprint, how many trials that this process has asked for too are to train the same.
    """
    trial = asked.trial
    source = _choose_model(bench, trial)
    strategy = sample(bench.spaces[source.name], trial)
    canonical = strategy.canonical(source.num_blocks)
    fingerprint = fingerprint_of(bench, source, strategy)
    # One seed for all strategies, so that they are compared on the same draw; the same strategy again gets the next.
    seed = seed_before(bench.study, trial.user_attrs)
    if seed is None:
        seed = bench.config.seed + ledger.times_tried(fingerprint) + alike.get(fingerprint, 0)
    # At once: who asks next counts it.
    _note(trial, {FINGERPRINT: fingerprint})
    short = short_epochs(bench.config.pruner, canonical.epochs)
    label = describe(canonical, source.name if bench.chooses_model else "")
    bench.watcher.trial_started(trial.number, strategy, label)
    attrs = trial.user_attrs
    bench.tracker.log(
        asked.run,
        params={MODEL: source.name, **strategy.to_dict(), DEPTH: canonical.depth, SEED: seed}
        | ({"low_rung_images": short.images} if short is not None else {}),
        tags={
            **model_tags([source]),
            "mlflow.runName": f"{trial.number} · {label}",
            "unfreeze.fingerprint": fingerprint,
            "unfreeze.attempt": attrs.get(ATTEMPT, 0),
            "unfreeze.preset": attrs.get(PRESET, ""),
        },
        datasets=datasets_of(bench.config.data, bench.data),
    )
    facts = {STRATEGY: strategy.to_dict(), DEPTH: canonical.depth, SEED: seed}
    bench.tracker.writer.put(lambda: _note(trial, facts))
    return Sampled(source, strategy, seed, fingerprint)


def train(bench: Bench, asked: Asked, sampled: Sampled | Exception) -> Record:
    """Train a trial by itself to its end, or until it is pruned; raise why if it could not be sampled."""
    if isinstance(sampled, Exception):
        raise sampled
    most, parts = sampled.strategy.batch_size // (2 * bench.team.count), 1
    while True:
        try:
            return _train(bench, asked, sampled, parts)
        except (RuntimeError, MemoryError) as error:
            # A rank alone cannot begin a step again in which others wait for it, so that all begin anew.
            is_first = bench.team.count > 1 and not bench.team.has_result
            if not is_first or not is_out_of_memory(error) or 2 * parts > most:
                raise
            leave_onednn_if_broken(error)
        free_memory()
        parts *= 2


def _train(bench: Bench, asked: Asked, sampled: Sampled, micro_batches: int) -> Record:
    with bench.team.training(sampled, micro_batches) as ranks:
        trainer = make_trainer(
            bench.config, bench, sampled.source, sampled.strategy, sampled.seed, micro_batches, ranks
        )
        return _follow(bench, asked, sampled, trainer)


def _follow(bench: Bench, asked: Asked, sampled: Sampled, trainer: Trainer) -> Record:
    """Report, log and keep what a trainer gives, until its end or until the trial is pruned."""
    log_plan(bench, asked.run, sampled.strategy, trainer.plan, trainer.reused.reason)
    trained, spared = count_trained(trainer.model, trainer.plan), trainer.reused.spared
    record = Record(bench, asked, trainer.strategy.epochs, trained, spared)
    try:
        go_on(bench, asked, sampled, trainer, record)
        bench.team.pass_on(trainer)
        snapshots = Snapshots(bench, asked, sampled, trainer, record)
        for result in bench.team.epochs(trainer):
            if bench.compiler is not None:
                # Known once it was tried, and before the trial may be pruned.
                bench.tracker.log(asked.run, tags={"unfreeze.compile": trainer.forward.reason})
            if trainer.micro_batches > 1:
                bench.tracker.log(asked.run, tags={"unfreeze.micro_batches": trainer.micro_batches})
            record.add(result, trainer.weights, trainer.look)
            snapshots.write_if_due()
            if bench.is_out_of_time and result.epoch < trainer.strategy.epochs:
                snapshots.write()
                raise OutOfTimeError
    except PrunedError:
        if bench.config.pruner.name == RUNGS:
            raise PrunedError(pause(bench, asked, sampled, trainer, record)) from None
        raise
    finally:
        seconds = record.seconds_spared
        if seconds > 0:
            bench.tracker.writer.put(lambda: _note(asked.trial, {SPARED: seconds}))
    return record


def _train_in_time(bench: Bench, asked: Asked, sampled: Sampled | Exception) -> Record:
    with time_limit(bench.config.budget.trial_minutes):
        return train(bench, asked, sampled)


def log_plan(bench: Bench, run: str, strategy: Strategy, plan: Plan, reuse: str) -> None:
    """Log what a strategy makes of the model, and in one line what is shared with other trials."""
    bench.tracker.log(run, tags={"unfreeze.reuse": reuse})
    bench.tracker.log_json(run, "manifest.json", plan.manifest())
    bench.tracker.log_text(run, "strategy.yaml", strategy.to_yaml())


def _note(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a trial in the store alone: what the trial object holds is the training thread's."""
    for name, value in attributes.items():
        trial.storage.set_trial_user_attr(trial._trial_id, name, value)


def _choose_model(bench: Bench, trial: Trial) -> ModelSource:
    """Draw the model, where there are several."""
    name = bench.first_source.name
    if bench.chooses_model:
        # Sorted, so that a list in another order is the same choice to Optuna.
        name = trial.suggest_categorical(MODEL, sorted(bench.sources))
    return bench.sources[name]


def fingerprint_of(bench: Bench, source: ModelSource, strategy: Strategy) -> str:
    """Twelve hexadecimal digits, equal for trials that train alike: the same strategy on the same model."""
    fingerprint = strategy.fingerprint(source.num_blocks)
    if not bench.chooses_model:
        return fingerprint
    return hashlib.sha256(f"{source.name} {fingerprint}".encode()).hexdigest()[: len(fingerprint)]


def model_tags(sources: Sequence[ModelSource]) -> dict[str, str]:
    """MLflow tags that say which models, and from which weights."""
    return {
        "unfreeze.model": ", ".join(source.name for source in sources),
        "unfreeze.weights": ", ".join(source.weights.source for source in sources),
        "unfreeze.weights_digest": ", ".join(source.weights.digest for source in sources),
    }


def count_trained(model: nn.Module, plan: Plan) -> int:
    """How many numbers of the model are trained in some epoch."""
    return sum(tensor.numel() for name, tensor in model.named_parameters() if name in plan.trainable)


def tell(bench: Bench, ledger: Ledger, asked: Asked, ending: Ended, alongside: Collection[int] = ()) -> FrozenTrial:
    """Tell a trial's ending to Optuna, when all that is logged of it is there, and end its run.

    Args:
        bench: What the study's trials share.
        ledger: The study's, which takes the trial in.
        asked: The trial.
        ending: How it ended.
        alongside: Numbers of trials that this process has asked for too and not told yet.
    """
    trial, run = asked.trial, asked.run
    if ending.outcome != "complete":
        bench.tracker.log_outcome(run, ending.outcome, ending.reason)
    # Whatever was logged of a trial is there, or on disk where MLflow is away, before it counts.
    bench.tracker.flush()
    try:
        if ending.reason:
            trial.set_user_attr(OUTCOME, ending.outcome)
            trial.set_user_attr(REASON, ending.reason)
        # The commit point: from here on the trial counts, whatever happens to this process.
        told = bench.study.tell(trial, ending.values, state=ENDINGS[ending.outcome].state)
    except (UpdateFinishedTrialError, ValueError):
        told = bench.study.get_trials(deepcopy=False)[trial.number]
        if not told.state.is_finished():
            raise
        _leave_to_others(bench, ledger, asked, told)
        return told
    bench.tracker.end(run, ending.outcome)
    if ending.outcome != "killed":
        drop_snapshots(bench, told)
    _drop_beaten(bench, ledger, told, alongside)
    if ending.outcome == "killed":
        with bench.lock:
            requeue(bench.study, told, attempt_of(told) + 1)
        bench.watcher.say(f"trial {told.number} is tried again: {ending.reason}")
    bench.watcher.trial_ended(told, score_of(ledger.ranked[0]) if ledger.ranked else None)
    return told


def _leave_to_others(bench: Bench, ledger: Ledger, asked: Asked, told: FrozenTrial) -> None:
    """End the run of a trial that another process took for dead and queued again: what it came to does not count."""
    bench.watcher.say(f"trial {told.number} was taken for dead by another process, and is tried again")
    bench.tracker.delete_checkpoint(asked.run)
    bench.tracker.finish(asked.run, "killed")
    refresh(bench, ledger)
    bench.watcher.trial_ended(told, None)


def _drop_beaten(bench: Bench, ledger: Ledger, told: FrozenTrial, alongside: Collection[int]) -> None:
    """Take a trial in that was just told, and remove the checkpoints that it, and what others told, have beaten."""
    with _dropping_beaten(bench, ledger):
        ledger.take(told, alongside)


def refresh(bench: Bench, ledger: Ledger) -> None:
    """Take in what other processes did, and remove the checkpoints that were beaten."""
    with _dropping_beaten(bench, ledger):
        ledger.refresh()


@contextmanager
def _dropping_beaten(bench: Bench, ledger: Ledger) -> Iterator[None]:
    """Remove the checkpoints that are beaten by what the ledger takes in while the ``with`` block runs.

    Of several processes whichever is the first to know that a checkpoint is beaten removes it, at the latest when it
    asks for its next trial.
    """
    keep = bench.config.checkpoints.keep
    kept_before, told_before = ledger.kept(keep), len(ledger.told)
    yield
    still_kept = {trial.number for trial in ledger.kept(keep)}
    for trial in (*kept_before, *ledger.told[told_before:]):
        if trial.number not in still_kept and CHECKPOINT in trial.user_attrs:
            bench.tracker.delete_checkpoint(trial.user_attrs[RUN_ID])


def describe(strategy: Strategy, model: str = "") -> str:
    """A strategy, and its model if one is given, in one short line: ``depth 4 · adamw 3e-04 · decay 0.7``."""
    parts = [model] if model else []
    parts += [f"depth {strategy.depth}", f"{strategy.optimizer} {strategy.lr:.0e}"]
    if strategy.layer_decay < 1:
        parts.append(f"decay {strategy.layer_decay:.2g}")
    if strategy.loss != "cross_entropy":
        parts.append(strategy.loss)
    if strategy.augment != "none":
        parts.append(f"augment {strategy.augment}")
    return " · ".join(parts)


def reason_of(error: Exception) -> str:
    """Why a training failed, in one line."""
    first = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {first}"
    return first if isinstance(error, UnfreezeError) else f"{type(error).__name__}: {first}"
