import pytest
from lab import numbers, study_of
from optuna.trial import TrialState, create_trial

from search.scheduling import pareto_front, ranked


@pytest.mark.parametrize(("direction", "order"), [("minimize", [1, 0, 2]), ("maximize", [2, 0, 1])])
def test_trials_are_ranked_by_the_metric_in_the_studys_direction(direction, order):
    study = study_of(0.5, 0.1, 0.9, directions=[direction])
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert numbers(ranked(study)) == order
    assert numbers(ranked(study_of([0.5, 3], [0.1, 1], [0.9, 2], directions=[direction, "minimize"]))) == order


def test_of_equals_the_earlier_is_ranked_first():
    assert numbers(ranked(study_of([0.5, 9], [0.9, 1], [0.5, 1]))) == [1, 0, 2]


def test_a_study_without_costs_has_no_front():
    assert pareto_front(study_of(0.5, 0.9, directions=["maximize"])) == []


def test_the_front_is_what_no_trial_betters_best_by_the_metric_first():
    study = study_of([0.5, 1], [0.9, 5], [0.4, 2], [0.7, 3], [0.7, 4], [0.5, 1])
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert numbers(pareto_front(study)) == [1, 3, 0, 5]
