import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from sklearn.tree import DecisionTreeRegressor

from benchmarks.importance import EFFECTS, main, named
from search.reporting import importances
from search.reporting.importance import _explained, _ranks, cuts_of

UNIT, SWITCH = FloatDistribution(0, 1), CategoricalDistribution(["sgd", "adamw"])


def study_of(*trials: tuple[float, dict[str, float | str]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for value, params in trials:
        kinds = {name: SWITCH if isinstance(choice, str) else UNIT for name, choice in params.items()}
        study.add_trial(create_trial(value=value, params=params, distributions=kinds))
    return study


@pytest.mark.parametrize("trials", [20, 50])
def test_of_noise_hardly_any_field_is_named(trials):
    # By its promise one study in fifty; three or more of ten have a chance of 0.1%. A share for each field named all.
    assert sum(named("none", trials, seed)[1] for seed in range(10)) <= 2


@pytest.mark.parametrize("effect", [effect for effect, (field, _) in EFFECTS.items() if field and "half" not in effect])
def test_a_field_that_decides_is_named_from_thirty_trials_and_no_other(effect):
    found = [named(effect, 30, seed) for seed in range(4)]
    assert sum(right for right, _ in found) >= 3
    assert sum(wrong for _, wrong in found) <= 1


def test_shares_add_up_to_what_the_fields_explain_and_stand_above_chance():
    rng = np.random.default_rng(0)
    fields = [{name: float(value) for name, value in zip("abcd", rng.random(4), strict=True)} for _ in range(200)]
    found = importances(study_of(*[(2 * one["a"] + one["b"] + rng.standard_normal() / 3, one) for one in fields]))
    # Var(2a) : Var(b) : Var(noise) = 0.60 : 0.15 : 0.2.
    assert list(found.shares) == ["a", "b"]
    assert found.shares["a"] == pytest.approx(0.6, abs=0.12)
    assert found.shares["b"] == pytest.approx(0.15, abs=0.08)
    assert found.by_chance is not None
    assert found.by_chance < found.shares["b"]


def test_a_field_that_comes_with_another_one_explains_nothing_by_being_there():
    rng = np.random.default_rng(1)
    trials = []
    for number in range(40):
        optimizer = "sgd" if number % 2 else "adamw"
        fields = {"optimizer": optimizer, "lr": rng.random()} | ({"momentum": rng.random()} if number % 2 else {})
        trials.append(((optimizer == "sgd") + rng.standard_normal() / 9, fields))
    assert list(importances(study_of(*trials)).shares) == ["optimizer"]


def test_a_field_that_half_of_the_trials_drew_is_named_if_its_value_decides():
    rng = np.random.default_rng(2)
    trials = []
    for number in range(60):
        momentum = rng.random()
        fields = {"lr": rng.random()} | ({"momentum": momentum} if number % 2 else {})
        trials.append((momentum * 4 if number % 2 else 2 + rng.standard_normal() / 9, fields))
    assert list(importances(study_of(*trials)).shares) == ["momentum"]


def test_a_diverged_trial_hides_nothing():
    rng = np.random.default_rng(3)
    fields = [{"lr": float(rng.random()), "depth": float(rng.random())} for _ in range(30)]
    scores = [one["lr"] for one in fields]
    scores[5:7] = [-1e9, -math.inf]
    assert "lr" in importances(study_of(*zip(scores, fields, strict=True))).shares


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([(k / 9, {"lr": k / 9}) for k in range(9)], "9 trials (20 complete ones are needed)"),
        ([(0.5, {"lr": k / 20}) for k in range(20)], "20 trials (all have the same score)"),
        ([(k / 20, {"lr": 0.5}) for k in range(20)], "20 trials (they do not differ in any field)"),
    ],
)
def test_where_nothing_can_be_told_the_reason_is_said(trials, reason):
    found = importances(study_of(*trials))
    assert not found.shares
    assert found.sentence == f"Which fields mattered: cannot be told from {reason}."


def test_a_tree_explains_what_that_of_scikit_learn_does():
    rng = np.random.default_rng(4)
    columns, scores = rng.integers(0, 12, (3, 80)), rng.random(80)
    ranks, cuts = _ranks(list(scores)), [cuts_of(column.tolist()) for column in columns]
    of_field = np.repeat(np.arange(3), [one.shape[1] for one in cuts])
    found = _explained(ranks[None], np.concatenate(cuts, 1), of_field)[0]
    tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=3).fit(columns.T, ranks)
    np.testing.assert_allclose(found, tree.tree_.compute_feature_importances(normalize=False), atol=1e-9)


def test_the_benchmark_prints_how_often_fields_are_named(tmp_path, capsys):
    main(["--quick", "--samplers", "random", "--trials", "20", "--json", str(tmp_path / "found.json")])
    assert "2 studies each" in capsys.readouterr().out
    assert '"sampler": "random"' in (tmp_path / "found.json").read_text()
