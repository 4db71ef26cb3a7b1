"""A study that is killed again and again: it has the trials and the winner of the uninterrupted study of its seed.

The process of a kill goes on here, which saves its start: the kill is an exception that nothing handles, and what is
running belongs to a process that has ended.
"""

import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from lab import SMALL, Lab

from search.processes import owner
from search.scheduling import ranked
from search.scheduling.original_order import uninterrupted
from search.storage import CONTINUES, FINGERPRINT, PRESET, SEED
from search.trials import sampling
from search.trials.record import Record

SPACE = SMALL["strategy"] | {"epochs": 2, "label_smoothing": {"low": 0.0, "high": 0.2}}
# The second is paused at the first rung, and is to resume after the fourth, while the fifth still waits.
PRESETS = {f"lr {lr:g}": {"depth": 1.0, "lr": lr} for lr in (1e-2, 1e-3, 1e-4, 3e-4, 2e-4)}
STUDY: dict[str, Any] = {
    "strategy": SPACE,
    "presets": PRESETS,
    "metric": "loss",
    "sampler": {"name": "tpe", "startup_trials": 3},
    "pruner": {"name": "rungs", "reduction": 2},
    "retries": 9,
    "budget": {"trials": 6},
}
#: Methods, and at which of their calls the process is killed, in one process after another.
KILLS: list[tuple[type, str, int]] = [
    (optuna.Study, "enqueue_trial", 2),
    (Record, "add", 3),
    (optuna.Study, "tell", 2),
    (optuna.Study, "enqueue_trial", 1),
    (optuna.Trial, "suggest_float", 8),
    (Record, "add", 2),
    (Record, "add", 2),
]


class Killed(BaseException):
    """A kill: no handler of the search knows it."""


@contextmanager
def killing(monkeypatch: pytest.MonkeyPatch, place: type, name: str, count: int):
    """Kill whoever calls a method, at so many calls."""
    call: Callable[..., Any] = getattr(place, name)
    left = count

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return call(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(place, name, killed)
        yield


def tried(lab: Lab) -> list[tuple[Any, ...]]:
    """What was tried, in order, under the numbers of an uninterrupted study."""
    trials = lab.trials()
    assert all(trial.state.is_finished() for trial in trials)
    return [
        (trial.params, trial.user_attrs.get(PRESET), trial.user_attrs[SEED], trial.state, trial.intermediate_values)
        for trial in uninterrupted(trials)
    ]


def test_the_trials_and_the_winner_are_those_of_the_uninterrupted_study(new_lab, monkeypatch):
    whole, broken = (new_lab(**STUDY) for _ in range(2))
    whole.train()
    ended = json.dumps(json.loads(owner()) | {"started": 0.0})
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "owner", lambda: ended)
        for place, method, count in KILLS:
            with killing(monkeypatch, place, method, count), pytest.raises(Killed):
                broken.train()
    broken.train()
    assert tried(broken) == tried(whole)
    assert sum(CONTINUES in trial.user_attrs for trial in whole.trials()) == 1
    assert len(broken.trials()) > len(whole.trials())
    best, expected = ranked(broken.study)[0], ranked(whole.study)[0]
    assert (best.user_attrs[FINGERPRINT], best.values) == (expected.user_attrs[FINGERPRINT], expected.values)
