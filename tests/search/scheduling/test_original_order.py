"""Samplers and pruners in a study whose trials are killed: the trials are those of the uninterrupted study."""

from collections.abc import Mapping

import optuna
import pytest

from search.config import PrunerConfig, SamplerConfig
from search.scheduling import StudySampler, ask_in_turn, make_pruner, recover
from search.scheduling.original_order import uninterrupted
from search.scheduling.retry import kill
from search.scheduling.samplers import PRUNERS, SAMPLERS
from search.storage import FINGERPRINT, OUTCOME

TRIALS = 14
#: By the trial's place, at which moments its process is killed, one attempt each.
KILLS = {1: ("asked",), 4: ("drawing", "training"), 6: ("asked", "drawn"), 9: ("training",), 10: ("drawing",)}


class KilledError(Exception):
    """The process is killed here."""


def attempt(trial: optuna.Trial, at: str) -> float | None:
    """One attempt at a trial up to the moment of its kill; its score, None where it was pruned."""

    def moment(name: str) -> None:
        if name == at:
            raise KilledError

    moment("asked")
    lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
    moment("drawing")
    depth = trial.suggest_int("depth", 0, 9)
    # Drawn only sometimes: such a field is not drawn together with the others.
    decay = trial.suggest_float("decay", 0.0, 1.0) if trial.suggest_categorical("loss", ["a", "b"]) == "a" else 0.5
    moment("drawn")
    trial.set_user_attr(FINGERPRINT, "drawn")
    score = depth - 100 * lr + decay
    for epoch in range(1, 5):
        trial.report(score + 9 / epoch, epoch)
        if trial.should_prune():
            return None
        if epoch == 2:
            moment("training")
    return score


def search(sampler: str, pruner: str, kills: Mapping[int, tuple[str, ...]]) -> list[tuple]:
    """Search with presets in the queue, of which some leave fields to the sampler; what was tried, in order."""
    study = optuna.create_study(
        study_name="s", pruner=make_pruner(PrunerConfig(name=pruner, startup_trials=2, warmup_epochs=0))
    )
    study.sampler = StudySampler(SamplerConfig(name=sampler, startup_trials=4), seed=3)
    left = {place: list(moments) for place, moments in kills.items()}
    for params in ({"lr": 1e-3}, {"lr": 2e-3, "depth": 2, "loss": "b"}, {}):
        study.enqueue_trial(params)
    while len(done := [trial for trial in uninterrupted(study.trials) if trial.state.is_finished()]) < TRIALS:
        trial = ask_in_turn(study)
        moments = left.get(len(done), [])
        try:
            score = attempt(trial, moments.pop(0) if moments else "")
        except KilledError:
            kill(study, study.trials[trial.number], retries=9, reason="its process ended")
            continue
        study.tell(trial, score, state=None if score is not None else optuna.trial.TrialState.PRUNED)
    # A trial that is pruned after its first epoch meets no kill in its second.
    assert len(study.trials) >= TRIALS + sum(map(len, kills.values())) - 2
    return [(trial.params, trial.state, trial.intermediate_values) for trial in done]


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [(name, "none") for name in (*SAMPLERS, "qmc")] + [("random", name) for name in PRUNERS if name != "rungs"],
)
def test_an_interrupted_study_has_the_trials_of_the_uninterrupted_one(sampler, pruner):
    whole = search(sampler, pruner, {})
    assert search(sampler, pruner, KILLS) == whole
    assert len({tuple(params.values()) for params, *_ in whole}) > TRIALS / 2


def test_a_trial_that_had_drawn_nothing_is_queued_even_if_its_process_was_killed_before_it_could():
    study = optuna.create_study()
    trial = ask_in_turn(study)
    trial.set_user_attr(OUTCOME, "killed")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert [told.number for told in recover(study, retries=2)] == [0]
    # An earlier version drew trial 1 in its place.
    study = optuna.create_study()
    for number in range(2):
        trial = study.ask()
        trial.set_user_attr(OUTCOME, "killed" if number == 0 else "failed")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert recover(study, retries=2) == []
