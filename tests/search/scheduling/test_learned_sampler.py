"""The learnt policy in an Optuna study of anyone's."""

import math
import pickle
from itertools import pairwise

import optuna
import pytest
from optuna.distributions import FloatDistribution

from search import LearnedSampler, ModelFeatures, TaskFeatures

TASK = TaskFeatures(images=1000, classes=10, image_size=64)


def objective(trial: optuna.Trial) -> float:
    """Accuracy with the best rate at 1e-3, rising over three epochs; an odd own field matters as well."""
    lr = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    bonus = {"a": 0.0, "b": 0.05, "c": 0.1}[trial.suggest_categorical("own", ["a", "b", "c"])]
    trial.suggest_int("batch_size", 16, 64, step=16)
    score = 0.0
    for epoch in range(1, 4):
        score = (0.7 - 0.1 * abs(math.log10(lr) + 3) + bonus) * (1 - 0.5**epoch)
        trial.report(score, epoch)
    return score


def search(direction: str = "maximize", seed: int = 0, **settings) -> optuna.Study:
    sampler = LearnedSampler(
        TASK, ModelFeatures("resnet18", 11e6), epochs=3, parameters={"learning_rate": "lr"}, seed=seed, **settings
    )
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(lambda trial: objective(trial) * (1 if direction == "maximize" else -1), n_trials=6)
    return study


def test_it_searches_a_plain_study_and_the_same_seed_gives_the_same_trials():
    study = search()
    assert [trial.params for trial in search().trials] == [trial.params for trial in study.trials]
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 6
    assert all(trial.params["batch_size"] % 16 == 0 for trial in study.trials)
    assert [trial.params for trial in search(seed=1).trials] != [trial.params for trial in study.trials]


def test_it_chooses_the_first_trial_where_the_space_is_given():
    space = {"learning_rate": FloatDistribution(1e-5, 1e-1, log=True)}
    found = [search(search_space=space, seed=seed).trials[0].params["learning_rate"] for seed in range(3)]
    # Not at random: what is known from elsewhere leaves out the ends of the range.
    assert all(2e-5 < rate < 5e-2 for rate in found)


def test_it_minimises_too():
    study = search("minimize")
    assert len(study.trials) == 6
    assert study.best_value < 0


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"parameters: 'rate' is not one of .*lr"):
        LearnedSampler(parameters={"learning_rate": "rate"})
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=LearnedSampler(TASK))
    study.enqueue_trial({"lr": 1e-3})
    with pytest.raises(ValueError, match="one objective only"):
        study.optimize(lambda trial: (trial.suggest_float("lr", 1e-4, 1e-2), 1.0), n_trials=2)


def test_asked_for_several_trials_at_once_it_gives_different_ones_and_threads_may_share_it():
    space = {"learning_rate": FloatDistribution(1e-5, 1e-1, log=True)}
    sampler = pickle.loads(pickle.dumps(LearnedSampler(TASK, parameters={"learning_rate": "lr"}, search_space=space)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    asked = [study.ask(space) for _ in range(4)]
    logs = sorted(math.log10(trial.params["learning_rate"]) for trial in asked)
    assert min(b - a for a, b in pairwise(logs)) > 0.02
    for trial in asked:
        study.tell(trial, 0.5)
    study.optimize(objective, n_trials=6, n_jobs=3)
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 10


def test_parameters_and_scores_that_are_not_such_as_it_knows_do_no_harm():
    study = optuna.create_study(direction="maximize", sampler=LearnedSampler(TASK, epochs=2))

    def diverging(trial: optuna.Trial) -> float:
        # Names of fields that the policy knows, for something else.
        trial.suggest_categorical("lr", ["low", "high"])
        trial.suggest_float("optimizer", 0.0, 1.0)
        trial.suggest_int("batch_size", 0, 3)
        trial.report(math.nan if trial.number % 2 else 0.5, 1)
        if trial.number == 3:
            raise optuna.TrialPruned
        return -math.inf if trial.number == 2 else 0.5

    study.optimize(diverging, n_trials=7)
    assert len(study.trials) == 7
