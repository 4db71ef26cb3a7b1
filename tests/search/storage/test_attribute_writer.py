"""Attributes of trials that are written while training goes on."""

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError

from search.storage import AttributeWriter


@pytest.fixture
def study(tmp_path) -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db")


def test_what_was_put_is_in_the_store_after_the_flush_the_last_value_of_each_name(study):
    writer, trial = AttributeWriter(), study.ask()
    writer.put(trial, {"run": "key", "seed": 3})
    writer.put(trial, {"run": "id"})
    writer.flush(trial)
    assert study.trials[0].user_attrs == {"run": "id", "seed": 3}
    # The trial object is the training thread's alone.
    assert trial.user_attrs == {}


def test_a_refused_attribute_is_raised_at_its_trials_flush_and_at_no_others(study):
    writer, told, running = AttributeWriter(), study.ask(), study.ask()
    study.tell(told, 1.0)
    writer.put(told, {"run": "key"})
    writer.put(running, {"run": "key"})
    writer.flush(running)
    with pytest.raises(UpdateFinishedTrialError):
        writer.flush(told)
    assert study.trials[1].user_attrs == {"run": "key"}
