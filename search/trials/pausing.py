"""Trials that are paused, and resume when they are among the best of their rung or the learnt policy says so."""

import time
from collections.abc import Mapping
from typing import Any

from optuna import Study

from search.scheduling import (
    RUNGS,
    Decision,
    Ledger,
    Rungs,
    Step,
    being_resumed,
    forerunners,
    queue_again,
    queued_in_turn,
)
from search.storage import CONTINUES, PAUSED, PREDICTED, PRESET, RETRY_OF, SEED
from search.trials.open_study import OpenStudy
from search.trials.record import Asked, Record, Sampled
from search.trials.snapshots import write_state
from trainers import StateError, Trainer

# Snapshots of trials that the learnt policy has paused; each holds a model, its optimizer's state and its best weights.
_MOST_PAUSED = 8


def seed_before(study: Study, attrs: Mapping[str, Any]) -> int | None:
    """The seed of the trial that a trial with these attributes tries again or resumes; None where none has one."""
    if not attrs.keys() & {CONTINUES, RETRY_OF}:
        return None
    trials = study.get_trials(deepcopy=False)
    seeds = (trials[number].user_attrs.get(SEED) for number in forerunners(trials, attrs))
    return next((int(seed) for seed in seeds if seed is not None), None)


def pause(open_study: OpenStudy, asked: Asked, sampled: Sampled, trainer: Trainer, record: Record) -> Decision:
    """Write the snapshot that a trial needs to resume.

    Returns:
        The decision to pause; or to stop, with a message, where the snapshot cannot be written.
    """
    epoch = trainer.epoch
    try:
        write_state(sampled, trainer, record, open_study.paused_state(asked.trial.number))
    except StateError as error:
        open_study.watcher.say(f"trial {asked.trial.number} cannot resume later: {error}")
        return Decision(Step.STOP, f"stopped at epoch {epoch}")
    asked.trial.set_user_attr(PAUSED, epoch)
    return Decision(Step.PAUSE, f"paused at epoch {epoch}")


def promote(open_study: OpenStudy, ledger: Ledger) -> bool:
    """Queue the paused trial that resumes next; return whether there was one.

    None is queued before a retry or an earlier resumption has begun: an interrupted study would else resume more
    trials than an uninterrupted study does. The caller holds the study's lock: of two processes that find the same
    trial, the second must see that it is queued.
    """
    if open_study.config.pruner.name != RUNGS or not open_study.paused.is_dir():
        return False
    if any(queued.user_attrs.keys() & {CONTINUES, RETRY_OF} for queued in queued_in_turn(open_study.study)):
        return False
    due = Rungs.of(open_study.config.pruner).due(
        open_study.study.get_trials(deepcopy=False),
        open_study.study.direction,
        lambda trial: open_study.paused_state(trial.number).exists(),
    )
    if due is None:
        return False
    queue_again(open_study.study, due, {CONTINUES: due.number})
    ledger.refresh()
    return True


def plan(open_study: OpenStudy, ledger: Ledger) -> bool:
    """Queue the trial that the learnt policy chooses next, unless trials are queued; return whether the search goes on.

    The caller holds the study's lock, as for :func:`promote`.
    """
    if open_study.planner is None or queued_in_turn(open_study.study):
        return True
    trials = open_study.study.get_trials(deepcopy=False)
    found = open_study.planner.next(trials, open_study.can_resume, open_study.deadline - time.monotonic())
    if found is None:
        return False
    attrs: dict[str, Any] = {PREDICTED: dict(found.predicted)}
    if found.preset:
        attrs[PRESET] = found.preset
    if found.resumes is not None:
        queue_again(open_study.study, found.resumes, {CONTINUES: found.resumes.number, **attrs})
    else:
        open_study.study.enqueue_trial(dict(found.params or {}), user_attrs=attrs)
    ledger.refresh()
    return True


def drop_paused(open_study: OpenStudy, ledger: Ledger, is_over: bool = False) -> None:
    """Remove the snapshots of paused trials that cannot resume within the budget.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger.
        is_over: Whether no more strategies will be drawn.
    """
    if not open_study.paused.is_dir():
        return
    # Listed first: whatever is written later belongs to a trial that the study already has.
    files = [file for file in open_study.paused.iterdir() if file.stem.isdecimal()]
    trials = open_study.study.get_trials(deepcopy=False)
    if open_study.planner is not None and open_study.pauses_by_plan:
        needed = being_resumed(trials) | (set() if is_over else open_study.planner.most_promising(trials, _MOST_PAUSED))
    else:
        budget = open_study.config.budget.trials
        to_come = 0 if is_over else None if budget is None else max(0, budget - ledger.counted)
        needed = Rungs.of(open_study.config.pruner).needed(trials, open_study.study.directions[0], to_come)
    for file in files:
        if int(file.stem) not in needed:
            file.unlink(missing_ok=True)
