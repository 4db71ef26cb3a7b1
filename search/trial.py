"""One trial from ask to tell: sample a strategy, train it epoch by epoch, report, prune, keep the checkpoint."""

import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import Tensor

from search.config import StudyConfig
from search.outcome import (
    ATTEMPT,
    CHECKPOINT,
    DEPTH,
    ENDINGS,
    FINGERPRINT,
    OUTCOME,
    OWNER,
    PRESET,
    REASON,
    RUN_ID,
    STRATEGY,
    Outcome,
    outcome_of,
)
from search.recovery import Heartbeat, interrupt, owner
from search.tracking import Tracker
from strategies import Space, Strategy, TrialError, UnfreezeError, sample
from trainers import TASKS, Device, EpochResult, ImageData, ModelSource, Trainer


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def trial_started(self, number: int, strategy: Strategy, label: str) -> None:
        """A trial was sampled and begins to train."""

    def epoch_ended(self, result: EpochResult, score: float) -> None:
        """An epoch of the running trial ended."""

    def trial_ended(self, trial: FrozenTrial, best: float | None) -> None:
        """The trial was told; ``best`` is the study's best score."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all trials of a study share."""

    config: StudyConfig
    space: Space
    source: ModelSource
    data: ImageData
    device: Device
    num_blocks: int
    study: Study
    tracker: Tracker
    parent_run: str
    run_tags: Mapping[str, str]
    watcher: Watcher

    @property
    def lower_is_better(self) -> bool:
        """Whether the study minimises its metric."""
        return self.config.metric in TASKS[self.config.task].lower_is_better


@dataclass(slots=True)
class _Best:
    """The best epoch so far of one trial."""

    score: float
    step: int
    state: dict[str, Tensor]


class _PrunedError(Exception):
    """The pruner stopped the trial."""


def run_trial(bench: Bench) -> FrozenTrial:
    """Ask for one strategy, train it and tell the result.

    A trial that goes wrong is told as failed with its reason. One that is interrupted (Ctrl-C, SIGTERM) is told as
    killed and queued again before the interrupt is passed on.
    """
    trial = bench.study.ask()
    trial.set_user_attr(OWNER, owner())
    run_id = bench.tracker.start_trial(
        bench.parent_run, f"trial {trial.number}", {"unfreeze.trial": trial.number, **bench.run_tags}
    )
    trial.set_user_attr(RUN_ID, run_id)
    score: float | None = None
    outcome: Outcome
    with Heartbeat(trial):
        try:
            best = _train(bench, trial, run_id)
            score, outcome, reason = best.score, "complete", ""
            _keep_checkpoint(bench, trial, run_id, best)
        except _PrunedError:
            outcome, reason = "pruned", ""
        except (KeyboardInterrupt, SystemExit):
            frozen = next(t for t in bench.study.get_trials(deepcopy=False) if t.number == trial.number)
            interrupt(bench.study, frozen)
            bench.tracker.finish(run_id, "killed")
            raise
        except Exception as error:
            outcome, reason = "failed", _reason(error)
            bench.tracker.log_text(run_id, "traceback.txt", traceback.format_exc())
    return _tell(bench, trial, run_id, outcome, score, reason)


def _train(bench: Bench, trial: Trial, run_id: str) -> _Best:
    strategy = sample(bench.space, trial)
    fingerprint = strategy.fingerprint(bench.num_blocks)
    # One seed for all strategies, so that they are compared on the same draw; the same strategy again gets the next.
    seed = bench.config.seed + _times_tried(bench.study, fingerprint)
    trial.set_user_attr(FINGERPRINT, fingerprint)
    trial.set_user_attr(STRATEGY, strategy.to_dict())
    canonical = strategy.canonical(bench.num_blocks)
    trial.set_user_attr(DEPTH, canonical.depth)
    label = describe(canonical)
    bench.watcher.trial_started(trial.number, strategy, label)
    trainer = Trainer(bench.source, bench.data, strategy, seed, bench.device)
    attrs = trial.user_attrs
    bench.tracker.log(
        run_id,
        params={**strategy.to_dict(), DEPTH: canonical.depth, "seed": seed},
        tags={
            "mlflow.runName": f"{trial.number} · {label}",
            "unfreeze.fingerprint": fingerprint,
            "unfreeze.attempt": attrs.get(ATTEMPT, 0),
            "unfreeze.preset": attrs.get(PRESET, ""),
        },
    )
    bench.tracker.log_json(run_id, "manifest.json", trainer.plan.manifest())
    bench.tracker.log_text(run_id, "strategy.yaml", strategy.to_yaml())
    return _run_epochs(bench, trial, run_id, trainer)


def _run_epochs(bench: Bench, trial: Trial, run_id: str, trainer: Trainer) -> _Best:
    best: _Best | None = None
    seconds = 0.0
    for result in trainer:
        score = result.metrics[f"val_{bench.config.metric}"]
        seconds += result.seconds
        if math.isnan(score):
            raise TrialError(f"validation {bench.config.metric} is not a number after epoch {result.step}")
        if best is None or (score < best.score if bench.lower_is_better else score > best.score):
            state = {name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
            best = _Best(score, result.step, state)
        bench.tracker.log(run_id, step=result.step, metrics={**result.metrics, "epoch_seconds": result.seconds})
        trial.report(score, result.step)
        bench.watcher.epoch_ended(result, score)
        # Stopping after the last epoch would save nothing and lose the trial's score.
        if result.step < trainer.strategy.epochs and trial.should_prune():
            raise _PrunedError
    assert best is not None, "a strategy has at least one epoch"
    bench.tracker.log(run_id, metrics={"score": best.score, "best_epoch": best.step, "seconds": seconds})
    return best


def _times_tried(study: Study, fingerprint: str) -> int:
    earlier = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return sum(t.user_attrs.get(FINGERPRINT) == fingerprint and outcome_of(t) != "killed" for t in earlier)


def _tell(bench: Bench, trial: Trial, run_id: str, outcome: Outcome, score: float | None, reason: str) -> FrozenTrial:
    ranked_before = ranked(bench.study, bench.lower_is_better)
    if reason:
        trial.set_user_attr(OUTCOME, outcome)
        trial.set_user_attr(REASON, reason)
    # The commit point: from here on the trial counts, whatever happens to this process.
    values = score if outcome == "complete" else None
    told = bench.study.tell(trial, values, state=ENDINGS[outcome].state)
    bench.tracker.finish(run_id, outcome, reason)
    keep = bench.config.checkpoints.keep
    kept = {t.number for t in ranked(bench.study, bench.lower_is_better)[:keep]}
    for beaten in ranked_before[:keep]:
        if beaten.number not in kept:
            bench.tracker.delete_checkpoint(beaten.user_attrs[RUN_ID])
    leader = ranked(bench.study, bench.lower_is_better)[:1]
    bench.watcher.trial_ended(told, leader[0].value if leader else None)
    return told


def _keep_checkpoint(bench: Bench, trial: Trial, run_id: str, best: _Best) -> None:
    others = [t.value for t in ranked(bench.study, bench.lower_is_better) if t.value is not None]
    ahead = sum(value <= best.score if bench.lower_is_better else value >= best.score for value in others)
    if ahead < bench.config.checkpoints.keep:
        trial.set_user_attr(CHECKPOINT, bench.tracker.save_checkpoint(run_id, best.state))


def ranked(study: Study, lower_is_better: bool) -> list[FrozenTrial]:
    """Completed trials from best to worst; of equals the earlier first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = 1 if lower_is_better else -1
    return sorted(complete, key=lambda t: (sign * (t.value if t.value is not None else 0.0), t.number))


def describe(strategy: Strategy) -> str:
    """A strategy in one short line: ``depth 4 · adamw 3e-04 · decay 0.7``."""
    parts = [f"depth {strategy.depth}", f"{strategy.optimizer} {strategy.lr:.0e}"]
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
