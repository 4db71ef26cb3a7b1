"""Trials one after another until the budget ends, whoever else works on the same study."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from optuna.exceptions import UpdateFinishedTrialError

from search.confirming import search_deadline
from search.improvement import is_exhausted
from search.ledger import Ledger
from search.locks import TurnLostError, held_all_along
from search.pausing import drop_paused, promote
from search.probing import probes_waiting, run_probes
from search.recovery import is_mine, trains_beside
from search.samplers import make_sampler
from search.settling import recover_trials, settle
from search.stopping import stop_if_asked
from search.trial import Asked, Bench, Sampled, ask, kill_asked, open_trial, refresh, run_trial

# How often a process that has nothing to train looks whether a trial of another was queued again.
_LOOK_SECONDS = 1.0


def work(bench: Bench, ledger: Ledger, go_on: Callable[[], bool], note: Callable[[str], None]) -> None:
    """Run trials until the budget has as many as it allows, its hours are over, or ``go_on`` says no.

    What others train counts as if it were told. Trials of processes of this host that ended are queued again; while
    living ones train the last of the budget this waits, since they may end before their time.

    Args:
        bench: What the study's trials share.
        ledger: The study's.
        go_on: Is asked before each trial.
        note: Is told once when this waits for others.
    """
    try:
        drop_paused(bench, ledger, is_over=_work(bench, ledger, go_on, note))
    finally:
        bench.team.close()


def _work(bench: Bench, ledger: Ledger, go_on: Callable[[], bool], note: Callable[[str], None]) -> bool:
    """Do so, and return whether no more strategies will be drawn."""
    most, is_waiting = bench.config.budget.trials, False
    while go_on():
        searching = replace(bench, deadline=search_deadline(bench, ledger.ranked))
        if time.monotonic() >= searching.deadline:
            break
        # Raised again here, lest a signal that something swallowed costs a whole trial.
        stop_if_asked()
        try:
            with bench.lock:
                refresh(bench, ledger)
                promote(bench, ledger)
                # One of this process's own that still shows as running was given up when a store could not be written
                # to.
                others = [trial for trial in ledger.running if not is_mine(trial)]
                room = None if most is None else most - ledger.counted - len(others)
                has_room = room is None or room > 0
                if has_room and is_exhausted(bench, ledger):
                    return True
                opened = claim(bench, ledger, room) if has_room else {}
        except TurnLostError:
            continue
        if not opened and others and recover_trials(bench):
            settle(bench)
        elif not opened:
            beside = [trial.number for trial in others if trains_beside(trial)]
            if not beside:
                return True
            if not is_waiting:
                note(f"Waiting for trials that other processes train: {', '.join(map(str, beside))}")
            is_waiting = True
            time.sleep(_LOOK_SECONDS)
        elif len(opened) > 1:
            run_probes(bench, ledger, opened)
        else:
            ((asked, sampled),) = opened.items()
            run_trial(searching, ledger, asked, sampled)
            drop_paused(bench, ledger)
    return False


def claim(bench: Bench, ledger: Ledger, room: int | None) -> dict[Asked, Sampled | Exception]:
    """Ask for the next trial, or for all linear probes in front of the queue, and sample what is asked for.

    The study's lock is held meanwhile: the next to ask sees what this one drew.

    Args:
        bench: What the study's trials share.
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
    with bench.lock:
        try:
            for place in range(max(1, probes_waiting(bench, room))):
                # A killed trial and its next attempt are one, lest an interrupted study draws other strategies.
                bench.study.sampler = make_sampler(bench.config.sampler, bench.config.seed, ledger.asked + place)
                everyone.append(ask(bench))
            # From here on others see what was asked for, so a lock that was lost matters only if it was before.
            if not held_all_along(bench.lock):
                raise TurnLostError
            for asked in everyone:
                try:
                    sampled = open_trial(bench, ledger, asked, alike)
                    alike[sampled.fingerprint] += 1
                    opened[asked] = sampled
                except Exception as error:  # whatever it is, it is this trial's reason
                    opened[asked] = error
        except (KeyboardInterrupt, SystemExit, TurnLostError, UpdateFinishedTrialError) as error:
            for asked in everyone:
                kill_asked(bench, asked)
            if isinstance(error, UpdateFinishedTrialError):
                # Who had the lock meanwhile took a trial that did not say yet whose it is for one of a dead process.
                raise TurnLostError from error
            raise
    return opened
