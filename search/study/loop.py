"""Trials one after another until the budget ends, also beside other processes of the same study."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from search.processes import stop_if_asked
from search.scheduling import Ledger, is_mine, no_more_expected, trains_beside
from search.storage import PAUSED, TurnLostError, held_all_along, outcome_of
from search.trials import (
    Asked,
    OpenStudy,
    Sampled,
    ask,
    drop_paused,
    kill_asked,
    open_trial,
    plan,
    probes_waiting,
    promote,
    reconcile_runs,
    recover_trials,
    refresh,
    run_probes,
    run_trial,
)
from search.winner import search_deadline

# Seconds between two looks of a waiting process for trials of others that were queued again.
_LOOK_SECONDS = 1.0


def run_trials(
    open_study: OpenStudy, ledger: Ledger, may_continue: Callable[[], bool], note: Callable[[str], None]
) -> None:
    """Run trials until the budget's trials or hours are used up, or ``may_continue`` returns False.

    Running trials of other processes count as if they had ended. Trials of ended processes of this host are queued
    again. While other processes train the last of the budget, this process waits, since they may end early.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger.
        may_continue: Called before each trial.
        note: Gets a message, once, when this process waits for others.
    """
    try:
        drop_paused(open_study, ledger, is_over=_run_trials(open_study, ledger, may_continue, note))
    finally:
        open_study.rank_group.close()


def _run_trials(
    open_study: OpenStudy, ledger: Ledger, may_continue: Callable[[], bool], note: Callable[[str], None]
) -> bool:
    """Run trials, and return whether no more strategies will be drawn."""
    most, is_waiting = open_study.config.budget.trials, False
    while may_continue():
        searching = replace(open_study, deadline=search_deadline(open_study, ledger.ranked))
        if searching.is_late and _may_end(open_study, ledger):
            break
        # Raises the interrupt again if a library swallowed it, which would cost a whole trial.
        stop_if_asked()
        try:
            with open_study.lock:
                refresh(open_study, ledger)
                # Of the learnt policy and of rungs, either resumes paused trials.
                goes_on = promote(open_study, ledger) or plan(searching, ledger)
                # A trial of this process that still shows as running was given up when a store could not be written to.
                others = [trial for trial in ledger.running if not is_mine(trial)]
                room = None if most is None else most - ledger.counted - len(others)
                has_room = room is None or room > 0
                if has_room and _is_exhausted(open_study, ledger):
                    return True
                opened = claim(open_study, ledger, room) if has_room and goes_on else {}
        except TurnLostError:
            continue
        if not opened and others and recover_trials(open_study):
            reconcile_runs(open_study)
        elif not opened:
            beside = [trial.number for trial in others if trains_beside(trial)]
            if not beside:
                return True
            if not is_waiting:
                note(f"Waiting for trials that other processes train: {', '.join(map(str, beside))}")
            is_waiting = True
            time.sleep(_LOOK_SECONDS)
        elif len(opened) > 1:
            run_probes(open_study, ledger, opened)
        else:
            ((asked, sampled),) = opened.items()
            told = run_trial(searching, ledger, asked, sampled)
            drop_paused(open_study, ledger)
            if _was_cut(searching, told):
                # It is the next in the queue, and would be cut again.
                break
    return False


def _may_end(open_study: OpenStudy, ledger: Ledger) -> bool:
    """Whether a search whose time is over may end: it has an answer, or trials are to be cut all the same.

    Of paused trials alone, the best is trained to its end first.
    """
    if open_study.config.budget.finish_trials is False:
        return True
    if not (ledger.told and open_study.pauses_by_plan):
        return bool(ledger.told)
    refresh(open_study, ledger)
    is_paused = any(PAUSED in trial.user_attrs for trial in ledger.told)
    return not is_paused or bool(ledger.ranked or ledger.running)


def _was_cut(searching: OpenStudy, told: FrozenTrial) -> bool:
    """Whether a trial was stopped since the time of the search is over, or none of its epochs fits any more."""
    took = 0.0 if told.duration is None else told.duration.total_seconds()
    return outcome_of(told) == "killed" and searching.is_out_of_time(took)


def _is_exhausted(open_study: OpenStudy, ledger: Ledger) -> bool:
    """Whether the expected improvement is below ``budget.min_improvement``; if so, print that."""
    threshold = open_study.config.budget.min_improvement
    if threshold is None or open_study.planner is not None:
        return False
    expected = no_more_expected(
        open_study.study, ledger, threshold, open_study.config.sampler.startup_trials, open_study.config.seed
    )
    if expected is None:
        return False
    open_study.watcher.say(
        f"Search  ends: the best validation {open_study.config.metric} can improve by at most {expected:.2g}, "
        f"less than budget.min_improvement {threshold:g}"
    )
    return True


def claim(open_study: OpenStudy, ledger: Ledger, room: int | None) -> dict[Asked, Sampled | Exception]:
    """Ask for the next trial, or for all linear probes at the front of the queue, and sample their strategies.

    The study's lock is held meanwhile, so that the next process sees the parameters drawn here.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger, refreshed.
        room: Number of trials that the budget still allows, at least one; None for any number.

    Returns:
        What each trial trains, or why its strategy cannot be sampled.

    Raises:
        TurnLostError: The lock was lost, and another process may have claimed the same trials; they are queued again.
    """
    everyone: list[Asked] = []
    opened: dict[Asked, Sampled | Exception] = {}
    alike: Counter[str] = Counter()
    with open_study.lock:
        try:
            for _ in range(max(1, probes_waiting(open_study, room))):
                everyone.append(ask(open_study))
            # From here on other processes see these trials: losing the lock matters only before.
            if not held_all_along(open_study.lock):
                raise TurnLostError
            for asked in everyone:
                try:
                    sampled = open_trial(open_study, ledger, asked, alike)
                    alike[sampled.fingerprint] += 1
                    opened[asked] = sampled
                except Exception as error:  # any error is the reason for this trial's failure
                    opened[asked] = error
        except (KeyboardInterrupt, SystemExit, TurnLostError, UpdateFinishedTrialError) as error:
            for asked in everyone:
                kill_asked(open_study, asked)
            if isinstance(error, UpdateFinishedTrialError):
                # Another process had the lock, and took a trial without an owner yet for one of an ended process.
                raise TurnLostError from error
            raise
    return opened
