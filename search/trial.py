"""One trial from ask to tell: sample a strategy, train it epoch by epoch, report, prune, keep the checkpoint."""

import hashlib
import math
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from optuna import Study
from optuna.trial import FrozenTrial, Trial
from torch import Tensor, nn

from search.config import Cost, StudyConfig
from search.ledger import Ledger
from search.outcome import (
    ATTEMPT,
    CHECKPOINT,
    DEPTH,
    ENDINGS,
    FINGERPRINT,
    MODEL,
    OUTCOME,
    OWNER,
    PRESET,
    REASON,
    RUN_ID,
    STRATEGY,
    Outcome,
    score_of,
)
from search.recovery import Heartbeat, interrupt, owner
from search.stopping import stop_if_asked
from search.tracking import RunId, Tracker
from strategies import Plan, Space, Strategy, TrialError, UnfreezeError, sample
from trainers import TASKS, Compiler, Device, EpochResult, ImageData, ModelSource, Reuse, Teacher, Trainer


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def reading(self, what: str, done: int, total: int) -> None:
        """How far something has come that all trials wait for."""

    def trial_started(self, number: int, strategy: Strategy, label: str) -> None:
        """A trial was sampled and begins to train."""

    def epoch_ended(self, result: EpochResult, score: float) -> None:
        """An epoch of the running trial ended."""

    def trial_ended(self, trial: FrozenTrial, best: float | None) -> None:
        """The trial was told; ``best`` is the study's best score."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all trials of a study share; ``spaces`` and ``sources`` by the model's name."""

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
    compiler: Compiler | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether the study minimises its metric."""
        return self.config.metric in TASKS[self.config.task].lower_is_better

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
    """A trial that was asked for, and the run that it is logged to."""

    trial: Trial
    run: RunId


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a trial is to train.

    Args:
        source: Builds the model.
        strategy: As it was sampled.
        seed: Of the training.
    """

    source: ModelSource
    strategy: Strategy
    seed: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ended: the values of a complete one, the reason of a failed one."""

    outcome: Outcome
    values: list[float] | None = None
    reason: str = ""


@dataclass(slots=True)
class _Best:
    """The best epoch so far of one trial."""

    score: float
    step: int
    state: dict[str, Tensor]


class PrunedError(Exception):
    """The pruner stopped the trial."""


class Record:
    """What a trial's epochs have come to; each is logged and reported as it is added.

    Args:
        bench: What the study's trials share.
        asked: The trial.
        epochs: How many it has.
        parameters_trained: Numbers of the model that are trained in some epoch.
    """

    def __init__(self, bench: Bench, asked: Asked, epochs: int, parameters_trained: int) -> None:
        self._bench = bench
        self._asked = asked
        self._epochs = epochs
        self._costs: dict[Cost, float] = {"seconds": 0.0, "parameters_trained": parameters_trained}
        self._best: _Best | None = None
        bench.tracker.log(asked.run, metrics={"parameters_trained": parameters_trained})

    def add(self, result: EpochResult, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Take an epoch's result, and the weights if it is the best so far.

        Raises:
            TrialError: The score is not a number.
            PrunedError: The pruner stops the trial here.
            KeyboardInterrupt, SystemExit: A signal asked for it.
        """
        stop_if_asked()
        config, trial = self._bench.config, self._asked.trial
        score = result.metrics[f"val_{config.metric}"]
        self._costs["seconds"] += result.seconds
        if math.isnan(score):
            raise TrialError(f"validation {config.metric} is not a number after epoch {result.step}")
        best = self._best
        if best is None or (score < best.score if self._bench.lower_is_better else score > best.score):
            self._best = _Best(score, result.step, weights())
        # The seconds so far in each epoch, so that a trial that is stopped has them too.
        took = {"epoch_seconds": result.seconds, "seconds": self._costs["seconds"]}
        self._bench.tracker.log(self._asked.run, step=result.step, metrics={**result.metrics, **took})
        self._bench.watcher.epoch_ended(result, score)
        if config.costs:
            return  # Optuna 5.0 takes reports for one objective only
        trial.report(score, result.step)
        # Stopping after the last epoch would save nothing and lose the trial's score. Where nothing is pruned Optuna
        # would still read the trial, for some 5 ms.
        if config.pruner.name != "none" and result.step < self._epochs and trial.should_prune():
            raise PrunedError

    @property
    def best(self) -> _Best:
        """The best epoch."""
        assert self._best is not None, "a strategy has at least one epoch"
        return self._best

    @property
    def values(self) -> list[float]:
        """What is told of the trial: its best score, and its costs."""
        return [self.best.score, *(self._costs[cost] for cost in self._bench.config.costs)]


def run_trial(bench: Bench, ledger: Ledger) -> FrozenTrial:
    """Ask for one strategy, train it and tell the result.

    A trial that goes wrong is told as failed with its reason. One that is interrupted (Ctrl-C, SIGTERM) is told as
    killed and queued again before the interrupt is passed on.

    Args:
        bench: What the study's trials share.
        ledger: The study's, which takes the trial in when it was told.

    Raises:
        WriteError: MLflow cannot even be told that the trial failed. It is not told then, so that it is tried again.
    """
    asked = ask(bench)
    with Heartbeat(asked.trial):
        try:
            ending = attempt(bench, ledger, asked, lambda: train(bench, asked, open_trial(bench, ledger, asked)))
        except (KeyboardInterrupt, SystemExit):
            kill_asked(bench, asked)
            raise
    return tell(bench, ledger, asked, ending)


def ask(bench: Bench) -> Asked:
    """Ask for the next trial and begin its run."""
    trial = bench.study.ask()
    trial.set_user_attr(OWNER, owner())
    run = bench.tracker.start_trial(
        bench.parent_run, f"trial {trial.number}", {"unfreeze.trial": trial.number, **bench.run_tags}
    )
    bench.tracker.writer.put(lambda: _note(trial, {RUN_ID: run.result()}))
    return Asked(trial, run)


def kill_asked(bench: Bench, asked: Asked) -> None:
    """Tell a trial as killed and queue it again, since its user or scheduler stopped it."""
    # First, since attributes that still wait to be written could not be once it is told.
    bench.tracker.try_to_finish(asked.run, "killed")
    interrupt(bench.study, next(t for t in bench.study.get_trials(deepcopy=False) if t.number == asked.trial.number))


def attempt(bench: Bench, ledger: Ledger, asked: Asked, trained: Callable[[], Record]) -> Ending:
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
        bench.tracker.log(asked.run, metrics={"score": best.score, "best_epoch": best.step})
        if ledger.would_be_kept(record.values, bench.config.checkpoints.keep):
            asked.trial.set_user_attr(CHECKPOINT, bench.tracker.save_checkpoint(asked.run, best.state))
        bench.tracker.log_outcome(asked.run, "complete")
        bench.tracker.flush()
        return Ending("complete", record.values)
    except PrunedError:
        return Ending("pruned")
    except Exception as error:
        bench.tracker.log_text(asked.run, "traceback.txt", traceback.format_exc())
        return Ending("failed", reason=_reason(error))


def open_trial(bench: Bench, ledger: Ledger, asked: Asked, alike: Mapping[str, int] | None = None) -> Sampled:
    """Sample a trial's strategy and log it.

    Args:
        bench: What the study's trials share.
        ledger: The study's.
        asked: The trial.
        alike: By fingerprint, how many trials that are not told yet train the same.
    """
    trial = asked.trial
    source = _choose_model(bench, trial)
    strategy = sample(bench.spaces[source.name], trial)
    canonical = strategy.canonical(source.num_blocks)
    fingerprint = fingerprint_of(bench, source, strategy)
    # One seed for all strategies, so that they are compared on the same draw; the same strategy again gets the next.
    seed = bench.config.seed + ledger.times_tried(fingerprint) + (alike or {}).get(fingerprint, 0)
    label = describe(canonical, source.name if bench.chooses_model else "")
    bench.watcher.trial_started(trial.number, strategy, label)
    attrs = trial.user_attrs
    bench.tracker.log(
        asked.run,
        params={MODEL: source.name, **strategy.to_dict(), DEPTH: canonical.depth, "seed": seed},
        tags={
            **model_tags([source]),
            "mlflow.runName": f"{trial.number} · {label}",
            "unfreeze.fingerprint": fingerprint,
            "unfreeze.attempt": attrs.get(ATTEMPT, 0),
            "unfreeze.preset": attrs.get(PRESET, ""),
        },
    )
    facts = {FINGERPRINT: fingerprint, STRATEGY: strategy.to_dict(), DEPTH: canonical.depth}
    bench.tracker.writer.put(lambda: _note(trial, facts))
    return Sampled(source, strategy, seed)


def train(bench: Bench, asked: Asked, sampled: Sampled) -> Record:
    """Train a trial by itself to its end."""
    trainer = Trainer(
        sampled.source,
        bench.data,
        sampled.strategy,
        sampled.seed,
        bench.device,
        bench.teacher,
        bench.reuse,
        compiler=bench.compiler,
    )
    log_plan(bench, asked, sampled.strategy, trainer.plan, trainer.reused.reason)
    record = Record(bench, asked, trainer.strategy.epochs, count_trained(trainer.model, trainer.plan))
    for result in trainer:
        if bench.compiler is not None:
            # Known once it was tried, and before the trial may be pruned.
            bench.tracker.log(asked.run, tags={"unfreeze.compile": trainer.forward.reason})
        record.add(result, trainer.weights)
    return record


def log_plan(bench: Bench, asked: Asked, strategy: Strategy, plan: Plan, reuse: str) -> None:
    """Log what a strategy makes of the model, and in one line what is shared with other trials."""
    bench.tracker.log(asked.run, tags={"unfreeze.reuse": reuse})
    bench.tracker.log_json(asked.run, "manifest.json", plan.manifest())
    bench.tracker.log_text(asked.run, "strategy.yaml", strategy.to_yaml())


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


def tell(bench: Bench, ledger: Ledger, asked: Asked, ending: Ending, alongside: Collection[int] = ()) -> FrozenTrial:
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
    # Whatever was logged of a trial is there before it counts.
    bench.tracker.flush()
    if ending.reason:
        trial.set_user_attr(OUTCOME, ending.outcome)
        trial.set_user_attr(REASON, ending.reason)
    # The commit point: from here on the trial counts, whatever happens to this process.
    told = bench.study.tell(trial, ending.values, state=ENDINGS[ending.outcome].state)
    bench.tracker.end(run, ending.outcome)
    _drop_beaten(bench, ledger, told, alongside)
    bench.watcher.trial_ended(told, score_of(ledger.ranked[0]) if ledger.ranked else None)
    return told


def _drop_beaten(bench: Bench, ledger: Ledger, told: FrozenTrial, alongside: Collection[int]) -> None:
    """Remove the checkpoints that the trial just told, and those that others told meanwhile, have beaten."""
    keep = bench.config.checkpoints.keep
    kept_before = ledger.kept(keep)
    ledger.take(told, alongside)
    still_kept = {trial.number for trial in ledger.kept(keep)}
    for trial in (*kept_before, told):
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


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {first}"
    return first if isinstance(error, UnfreezeError) else f"{type(error).__name__}: {first}"
