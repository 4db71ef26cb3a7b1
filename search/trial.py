"""One trial from ask to tell: sample a strategy, train it epoch by epoch, report, prune, keep the checkpoint."""

import hashlib
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from optuna import Study
from optuna.trial import FrozenTrial, Trial
from torch import Tensor

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
from search.tracking import RunId, Tracker
from strategies import Space, Strategy, TrialError, UnfreezeError, sample
from trainers import TASKS, Device, EpochResult, ImageData, ModelSource, Reuse, Teacher, Trainer


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


@dataclass(slots=True)
class _Best:
    """The best epoch so far of one trial."""

    score: float
    step: int
    state: dict[str, Tensor]


class _PrunedError(Exception):
    """The pruner stopped the trial."""


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
    trial = bench.study.ask()
    trial.set_user_attr(OWNER, owner())
    run = bench.tracker.start_trial(
        bench.parent_run, f"trial {trial.number}", {"unfreeze.trial": trial.number, **bench.run_tags}
    )
    bench.tracker.writer.put(lambda: _note(trial, {RUN_ID: run.result()}))
    values: list[float] | None = None
    outcome: Outcome
    with Heartbeat(trial):
        try:
            best, costs = _train(bench, ledger, trial, run)
            values = [best.score, *(costs[cost] for cost in bench.config.costs)]
            outcome, reason = "complete", ""
            if ledger.would_be_kept(values, bench.config.checkpoints.keep):
                trial.set_user_attr(CHECKPOINT, bench.tracker.save_checkpoint(run, best.state))
            bench.tracker.log_outcome(run, outcome)
            bench.tracker.flush()
        except _PrunedError:
            outcome, reason = "pruned", ""
        except (KeyboardInterrupt, SystemExit):
            # First, since attributes that still wait to be written could not be once it is told.
            bench.tracker.try_to_finish(run, "killed")
            frozen = next(t for t in bench.study.get_trials(deepcopy=False) if t.number == trial.number)
            interrupt(bench.study, frozen)
            raise
        except Exception as error:
            outcome, reason = "failed", _reason(error)
            bench.tracker.log_text(run, "traceback.txt", traceback.format_exc())
    return _tell(bench, ledger, trial, run, outcome, values, reason)


def _train(bench: Bench, ledger: Ledger, trial: Trial, run: RunId) -> tuple[_Best, dict[Cost, float]]:
    source = _choose_model(bench, trial)
    strategy = sample(bench.spaces[source.name], trial)
    canonical = strategy.canonical(source.num_blocks)
    fingerprint = _fingerprint(bench, source, strategy)
    # One seed for all strategies, so that they are compared on the same draw; the same strategy again gets the next.
    seed = bench.config.seed + ledger.times_tried(fingerprint)
    label = describe(canonical, source.name if bench.chooses_model else "")
    bench.watcher.trial_started(trial.number, strategy, label)
    attrs = trial.user_attrs
    bench.tracker.log(
        run,
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
    trainer = Trainer(source, bench.data, strategy, seed, bench.device, bench.teacher, bench.reuse)
    bench.tracker.log(run, tags={"unfreeze.reuse": trainer.reused.reason})
    bench.tracker.log_json(run, "manifest.json", trainer.plan.manifest())
    bench.tracker.log_text(run, "strategy.yaml", strategy.to_yaml())
    return _run_epochs(bench, trial, run, trainer)


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


def _fingerprint(bench: Bench, source: ModelSource, strategy: Strategy) -> str:
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


def _run_epochs(bench: Bench, trial: Trial, run: RunId, trainer: Trainer) -> tuple[_Best, dict[Cost, float]]:
    parameters_trained = _parameters_trained(trainer)
    bench.tracker.log(run, metrics={"parameters_trained": parameters_trained})
    prunes = bench.config.pruner.name != "none"
    best: _Best | None = None
    seconds = 0.0
    for result in trainer:
        score = result.metrics[f"val_{bench.config.metric}"]
        seconds += result.seconds
        if math.isnan(score):
            raise TrialError(f"validation {bench.config.metric} is not a number after epoch {result.step}")
        if best is None or (score < best.score if bench.lower_is_better else score > best.score):
            best = _Best(score, result.step, trainer.weights())
        # The seconds so far in each epoch, so that a trial that is stopped has them too.
        took = {"epoch_seconds": result.seconds, "seconds": seconds}
        bench.tracker.log(run, step=result.step, metrics={**result.metrics, **took})
        bench.watcher.epoch_ended(result, score)
        if bench.config.costs:
            continue  # Optuna 5.0 takes reports for one objective only
        trial.report(score, result.step)
        # Stopping after the last epoch would save nothing and lose the trial's score. Where nothing is pruned Optuna
        # would still read the trial, for some 5 ms.
        if prunes and result.step < trainer.strategy.epochs and trial.should_prune():
            raise _PrunedError
    assert best is not None, "a strategy has at least one epoch"
    bench.tracker.log(run, metrics={"score": best.score, "best_epoch": best.step})
    return best, {"seconds": seconds, "parameters_trained": parameters_trained}


def _parameters_trained(trainer: Trainer) -> int:
    """How many numbers of the model are trained in some epoch."""
    trainable = trainer.plan.trainable
    return sum(tensor.numel() for name, tensor in trainer.model.named_parameters() if name in trainable)


def _tell(
    bench: Bench,
    ledger: Ledger,
    trial: Trial,
    run: RunId,
    outcome: Outcome,
    values: list[float] | None,
    reason: str,
) -> FrozenTrial:
    if outcome != "complete":
        bench.tracker.log_outcome(run, outcome, reason)
    # Whatever was logged of a trial is there before it counts.
    bench.tracker.flush()
    if reason:
        trial.set_user_attr(OUTCOME, outcome)
        trial.set_user_attr(REASON, reason)
    # The commit point: from here on the trial counts, whatever happens to this process.
    told = bench.study.tell(trial, values if outcome == "complete" else None, state=ENDINGS[outcome].state)
    bench.tracker.end(run, outcome)
    _drop_beaten(bench, ledger, told)
    bench.watcher.trial_ended(told, score_of(ledger.ranked[0]) if ledger.ranked else None)
    return told


def _drop_beaten(bench: Bench, ledger: Ledger, told: FrozenTrial) -> None:
    """Remove the checkpoints that the trial just told, and those that others told meanwhile, have beaten."""
    keep = bench.config.checkpoints.keep
    kept_before = ledger.kept(keep)
    ledger.take(told)
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
