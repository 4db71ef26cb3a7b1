import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from search.reporting import importances

UNIT = FloatDistribution(0, 1)


def study_of(*trials: tuple[float, dict[str, float]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for value, params in trials:
        study.add_trial(create_trial(value=value, params=params, distributions=dict.fromkeys(params, UNIT)))
    return study


def test_a_field_that_few_trials_drew_takes_no_part():
    trials = [(k / 20, {"lr": k / 20, "depth": (7 * k % 20) / 20}) for k in range(20)]
    trials[18][1]["rare"], trials[3][1]["rare"] = 0.9, 0.1
    found = importances(study_of(*trials))
    assert found.keys() == {"lr", "depth"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["lr"] > found["depth"]


def test_a_field_that_half_of_the_trials_drew_does():
    trials = [(k / 20, {"lr": k / 20} | ({"half": k / 20} if k % 2 else {})) for k in range(20)]
    assert importances(study_of(*trials)).keys() == {"lr", "half"}


def test_of_few_trials_or_equal_ones_nothing_is_said():
    assert importances(study_of((0.1, {"lr": 0.1}), (0.2, {"lr": 0.2}))) == {}
    assert importances(study_of(*[(0.5, {"lr": k / 9}) for k in range(9)])) == {}
