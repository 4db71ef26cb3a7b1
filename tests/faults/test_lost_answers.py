"""The connection ends after the server has committed, and before it could say so."""

import optuna
import pytest
from optuna.trial import TrialState

from search.scheduling import attempt_of, requeue, requeuing
from search.storage import ATTEMPT, open_storage


@pytest.fixture
def study(server, database, way) -> optuna.Study:
    name = database.partition("/db")[2].partition("?")[0]
    storage = open_storage(server.url(f"db{name}", way.folder), requeuing(lambda: 1))
    return optuna.create_study(study_name="s", storage=storage, direction="maximize")


@pytest.fixture
def losing(way):
    """Do something whose commit's answer is lost."""

    def do(what):
        way.lose_the_next_answer()
        before = way.lost
        done = what()
        assert way.lost == before + 1
        return done

    return do


def states(study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def test_a_trial_that_is_asked_for_is_made_once(study, losing):
    trial = losing(study.ask)
    assert (trial.number, states(study)) == (0, ["RUNNING"])
    study.tell(trial, 0.5)
    assert study.ask().number == 1


def test_a_queued_trial_is_taken_once_and_by_the_one_who_asked(study, losing):
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 0.6})
    trial = losing(study.ask)
    assert trial.suggest_float("x", 0, 1) == 0.5
    assert states(study) == ["RUNNING", "WAITING"]


def test_a_trial_is_queued_again_once(study, losing):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, state=TrialState.FAIL)
    (killed,) = study.get_trials()
    losing(lambda: requeue(study, killed, 1))
    assert states(study) == ["FAIL", "WAITING"]
    assert attempt_of(study.get_trials()[1]) == 1


@pytest.mark.parametrize(("state", "values"), [(TrialState.COMPLETE, 0.7), (TrialState.FAIL, None)])
def test_a_trial_is_told_though_nobody_heard_that_it_was(study, losing, state, values):
    trial = study.ask()
    told = losing(lambda: study.tell(trial, values, state=state))
    assert (told.state, told.value) == (state, values)
    with pytest.raises(ValueError, match="Cannot tell a"):
        study.tell(trial, values, state=state)


def test_a_trial_that_somebody_else_told_is_not_told_again(study):
    trial = study.ask()
    study.tell(trial.number, 0.1)
    storage = study._storage
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.1])


def test_what_is_written_of_a_trial_is_there_once(study, losing):
    trial = study.ask()
    value = losing(lambda: trial.suggest_float("x", 0, 1))
    losing(lambda: trial.set_user_attr(ATTEMPT, 1))
    losing(lambda: trial.report(0.3, 1))
    losing(lambda: study._storage.record_heartbeat(trial._trial_id))
    losing(lambda: study.set_user_attr("key", "value"))
    (found,) = study.get_trials()
    assert (found.params, found.user_attrs) == ({"x": value}, {ATTEMPT: 1})
    assert found.intermediate_values == {1: 0.3}
    assert study.user_attrs == {"key": "value"}
