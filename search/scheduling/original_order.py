"""The order of an uninterrupted study: a retry stands in the place of the killed trial that it tries again.

Samplers and pruners see trials in this order and under these numbers. So a trial depends on the study's seed, on its
place, and on the trials before it, but not on how often the study was interrupted.
"""

from collections.abc import Sequence
from copy import copy

from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from search.storage import RETRY_OF, StudyOfTrials, take_queued


def first_attempt(trials: Sequence[FrozenTrial], number: int) -> int:
    """Number of the first attempt at a trial; the trial's own number unless it is a retry.

    Args:
        trials: All trials of the study, by number.
        number: Number of the trial.
    """
    while RETRY_OF in trials[number].user_attrs:
        number = trials[number].user_attrs[RETRY_OF]
    return number


def first_attempts(trials: Sequence[FrozenTrial]) -> list[int]:
    """The :func:`first_attempt` of each trial.

    Args:
        trials: All trials of the study, by number.
    """
    found: list[int] = []
    for trial in trials:
        retried = trial.user_attrs.get(RETRY_OF)
        found.append(trial.number if retried is None else found[retried])
    return found


def uninterrupted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The last attempt at each trial, numbered as if no trial had been killed.

    What a sampler stored with a killed attempt is handed on to the attempt that was told.

    Args:
        trials: All trials of the study, by number.
    """
    last: dict[int, FrozenTrial] = {}
    for trial, first in zip(trials, first_attempts(trials), strict=True):
        last[first] = _following(last[first], trial) if first in last else trial
    return [_numbered(last[first], place) for place, first in enumerate(sorted(last))]


def _following(killed: FrozenTrial, retry: FrozenTrial) -> FrozenTrial:
    if not retry.state.is_finished():
        return retry
    retry = copy(retry)
    retry.system_attrs = {**killed.system_attrs, **retry.system_attrs}
    return retry


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    if trial.number == number:
        return trial
    trial = copy(trial)
    trial.number = number
    return trial


def as_uninterrupted(study: Study, trial: FrozenTrial) -> tuple[Study, FrozenTrial]:
    """A study and one of its trials as if no trial had been killed; both for reading.

    Args:
        study: The study.
        trial: The trial, whose parameters and reports may be newer than those in the store.
    """
    trials = study.get_trials(deepcopy=False)
    firsts = first_attempts(trials)
    place = sorted(set(firsts)).index(firsts[trial.number])
    return StudyOfTrials(study, uninterrupted(trials)), _numbered(trial, place)


def queued_in_turn(study: Study) -> list[FrozenTrial]:
    """Queued trials in the order in which they are taken: a retry before trials that were queued after its original."""
    trials = study.get_trials(deepcopy=False)
    queued = [trial for trial in trials if trial.state == TrialState.WAITING]
    return sorted(queued, key=lambda trial: (first_attempt(trials, trial.number), trial.number))


def ask_in_turn(study: Study) -> Trial:
    """Ask for the next queued trial, or for a new trial where none is queued."""
    for queued in queued_in_turn(study):
        trial = take_queued(study, queued)
        if trial is not None:
            return trial
    return study.ask()
