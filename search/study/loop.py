"""Trials one after another until the budget ends, whoever else works on the same study."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from optuna.exceptions import UpdateFinishedTrialError

from search.processes import stop_if_asked
from search.scheduling import Ledger, is_mine, make_sampler, no_more_expected, trains_beside
from search.storage import TurnLostError, held_all_along
from search.trials import (
    Asked,
    OpenStudy,
    Sampled,
    ask,
    drop_paused,
    kill_asked,
    open_trial,
    probes_waiting,
    promote,
    reconcile_runs,
    recover_trials,
    refresh,
    run_probes,
    run_trial,
)
from search.winner import search_deadline

# How often a process that has nothing to train looks whether a trial of another was queued again.
_LOOK_SECONDS = 1.0


def run_trials(
    open_study: OpenStudy, ledger: Ledger, may_continue: Callable[[], bool], note: Callable[[str], None]
) -> None:
    """Run trials until the budget has as many as it allows, its hours are over, or ``may_continue`` says no.

    What others train counts as if it were told. Trials of processes of this host that ended are queued again; while
    living ones train the last of the budget this waits, since they may end before their time.

    Args:
        open_study: What the study's trials share.
        ledger: The study's.
        may_continue: Is asked before each trial.
        note: Is told once when this waits for others.
    """
    try:
        drop_paused(open_study, ledger, is_over=_run_trials(open_study, ledger, may_continue, note))
    finally:
        open_study.rank_group.close()


def _run_trials(
    open_study: OpenStudy, ledger: Ledger, may_continue: Callable[[], bool], note: Callable[[str], None]
) -> bool:
    """Do so, and return whether no more strategies will be drawn."""
    most, is_waiting = open_study.config.budget.trials, False
    while may_continue():
        searching = replace(open_study, deadline=search_deadline(open_study, ledger.ranked))
        if time.monotonic() >= searching.deadline:
            break
        # Raised again here, lest a signal that something swallowed costs a whole trial.
        stop_if_asked()
        try:
            with open_study.lock:
                refresh(open_study, ledger)
                promote(open_study, ledger)
                # One of this process's own that still shows as running was given up when a store could not be written
                # to.
                others = [trial for trial in ledger.running if not is_mine(trial)]
                room = None if most is None else most - ledger.counted - len(others)
                has_room = room is None or room > 0
                if has_room and _is_exhausted(open_study, ledger):
                    return True
                opened = claim(open_study, ledger, room) if has_room else {}
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
            run_trial(searching, ledger, asked, sampled)
            drop_paused(open_study, ledger)
    return False


def _is_exhausted(open_study: OpenStudy, ledger: Ledger) -> bool:
    """Whether the best score can hardly be improved by ``budget.min_improvement``, which is said."""
    threshold = open_study.config.budget.min_improvement
    if threshold is None:
        return False
    expected = no_more_expected(
        open_study.study, ledger, threshold, open_study.config.sampler.startup_trials, open_study.config.seed
    )
    if expected is None:
        return False
    open_study.watcher.say(
        f"Search  ends: the best validation {open_study.config.metric} lacks at most {expected:.2g}, less than "
        f"budget.min_improvement {threshold:g}"
    )
    return True


def claim(open_study: OpenStudy, ledger: Ledger, room: int | None) -> dict[Asked, Sampled | Exception]:
    """Ask for the next trial, or for all linear probes in front of the queue, and sample what is asked for.

    The study's lock is held meanwhile: the next to ask sees what this one drew.

    Args:
        open_study: What the study's trials share.
        ledger: The study's, as it is now.
        room: How many trials the budget allows, at least one; None for any number.

    Returns:
        What each trial is to train, or why that cannot be sampled.

    Raises:
        TurnLostError: Another process may have claimed what this one did; what was asked for is queued again.
    """
    everyone: list[Asked] = []
    opened: dict[Asked, Sampled | Exception] = {}
    alike: Counter[str] = Counter()
    with open_study.lock:
        try:
            for place in range(max(1, probes_waiting(open_study, room))):
                # A killed trial and its next attempt are one, lest an interrupted study draws other strategies.
                open_study.study.sampler = make_sampler(
                    open_study.config.sampler, open_study.config.seed, ledger.asked + place
                )
                everyone.append(ask(open_study))
            # From here on others see what was asked for, so a lock that was lost matters only if it was before.
            if not held_all_along(open_study.lock):
                raise TurnLostError
            for asked in everyone:
                try:
                    sampled = open_trial(open_study, ledger, asked, alike)
                    alike[sampled.fingerprint] += 1
                    opened[asked] = sampled
                except Exception as error:  # whatever it is, it is this trial's reason
                    opened[asked] = error
        except (KeyboardInterrupt, SystemExit, TurnLostError, UpdateFinishedTrialError) as error:
            for asked in everyone:
                kill_asked(open_study, asked)
            if isinstance(error, UpdateFinishedTrialError):
                # Who had the lock meanwhile took a trial that did not say yet whose it is for one of a dead process.
                raise TurnLostError from error
            raise
    return opened
