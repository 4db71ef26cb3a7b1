"""The answer to "which layers?" in words, from studies whose scores are drawn."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search.reporting import which_layers
from search.storage import BLOCKS, CONFIRMATIONS, DEPTH, IDENTITY, MODEL

RATES, BATCHES = FloatDistribution(1e-4, 1e-2, log=True), CategoricalDistribution([16, 32])
KINDS = {"depth": IntDistribution(0, 9), "lr": RATES, "batch_size": BATCHES}
MODELS = CategoricalDistribution(["small", "large"])
BEGAN = datetime(2026, 1, 1)


def study_of(
    mean: Callable[[int, float], float],
    trials: int = 60,
    direction: str = "maximize",
    noise: float = 0.01,
    seconds: Callable[[int], float] = lambda depth: 1.0 + depth,
) -> optuna.Study:
    """A study of nine blocks; a score's mean follows from depth and the rate, which is between 0 and 1."""
    study, rng = optuna.create_study(direction=direction), np.random.default_rng(0)
    study.set_user_attr(IDENTITY, {"metric": "accuracy" if direction == "maximize" else "loss"})
    study.set_user_attr(BLOCKS, {"resnet18": 9})
    for number in range(trials):
        depth, rate = number % 10, rng.random()
        params = {"depth": depth, "lr": 10 ** (-4 + 2 * rate), "batch_size": int(rng.choice([16, 32]))}
        study.add_trial(trial_of(mean(depth, rate) + noise * rng.standard_normal(), params, KINDS, seconds(depth)))
    return study


def trial_of(score, params, kinds, seconds=1.0, state=TrialState.COMPLETE):
    trial = create_trial(
        value=score, params=params, distributions=kinds, user_attrs={DEPTH: params["depth"]}, state=state
    )
    trial.datetime_start, trial.datetime_complete = BEGAN, BEGAN + timedelta(seconds=seconds)
    return trial


def test_a_step_in_depth_is_told_with_its_size_and_that_more_brings_nothing():
    answer = which_layers(study_of(lambda depth, rate: (0.9 if depth >= 4 else 0.7) - 0.1 * (rate - 0.5) ** 2))
    text = answer.paragraph
    assert text.startswith("Which layers? Train at least the last 4 of 9 blocks: with fewer than 4, accuracy is 0.")
    assert "lower (95% interval 0.1" in text
    assert "nothing is gained that 60 trials can show" in text
    fewer = answer.told[0]
    assert (fewer.these[0], fewer.others) == (4, (0, 3))
    assert fewer.found.low < 0.2 < fewer.found.high
    assert fewer.found.high - fewer.found.low < 0.05


def test_of_a_metric_of_which_less_is_better_more_is_worse():
    text = which_layers(study_of(lambda depth, rate: 0.3 if depth >= 6 else 0.8, direction="minimize")).paragraph
    assert re.search(r"Train at least the last 6 of 9 blocks: with fewer than 6, loss is 0\.(49|50)\d higher", text)
    assert "higher (95% interval 0.4" in text


def test_depths_that_hurt_are_told():
    text = which_layers(study_of(lambda depth, rate: 0.9 if depth <= 5 else 0.6)).paragraph
    assert re.search(r"Train at most the last 5 of 9 blocks: with more, accuracy is 0\.(29|30)\d lower", text)


def test_without_an_effect_of_depth_that_is_said_and_which_field_matters():
    answer = which_layers(study_of(lambda depth, rate: 0.5 + 0.3 * rate))
    assert "How many blocks are trained makes no difference that 60 trials can show" in answer.paragraph
    assert "The learning rate matters next; batch size does not, as far as 60 trials tell." in answer.paragraph
    (told,) = answer.told
    assert told.found.low < 0 < told.found.high


def test_a_share_ends_at_one():
    answer = which_layers(study_of(lambda depth, rate: float(depth >= 5), noise=0.0))
    assert answer.told[0].found.high <= 1


def test_few_trials_and_one_depth_tell_nothing():
    few = which_layers(study_of(lambda depth, rate: 0.5, trials=9))
    assert few.paragraph == "Which layers? That cannot be told from 9 trials (20 complete ones are needed)."
    study = study_of(lambda depth, rate: 0.5, trials=0)
    assert "cannot be told from 0 trials" in which_layers(study).paragraph
    for place in range(30):
        study.add_trial(trial_of(0.5 + place / 100, {"depth": 3}, {"depth": KINDS["depth"]}))
    assert "That cannot be told: nearly all of 30 trials train 3 blocks." in which_layers(study).paragraph


def test_of_several_models_the_trials_of_the_best_ones_count():
    study = study_of(lambda depth, rate: 0.5, trials=0)
    study.set_user_attr(BLOCKS, {"small": 9, "large": 12})
    rng = np.random.default_rng(0)
    for number in range(60):
        model, depth = ("small", "large")[number % 2], number // 2 % 10
        score = (0.9 if model == "large" and depth >= 6 else 0.5) + 0.01 * rng.standard_normal()
        study.add_trial(trial_of(score, {"depth": depth, MODEL: model}, {"depth": KINDS["depth"], MODEL: MODELS}))
    text = which_layers(study).paragraph
    assert "the last 6 of 12 blocks" in text
    assert "(large)." in text


def test_trials_within_noise_are_a_tie_and_the_cheapest_is_named():
    study = study_of(lambda depth, rate: 0.9 if depth >= 6 else 0.6)
    answer = which_layers(study)
    assert len(answer.tied) >= 22
    assert {study.trials[number].params["depth"] for number in answer.tied} == {6, 7, 8, 9}
    assert re.search(
        rf"\. {len(answer.tied)} trials are a tie \(.*\), since noise alone can put scores 0\.0\d+ apart;",
        answer.paragraph,
    )
    cheapest = min(answer.tied, key=lambda number: study.trials[number].params["depth"])
    assert f"the cheapest of them is trial {cheapest} (6 blocks, 7.0 s)." in answer.paragraph
    assert answer.paragraph.endswith("confirm.seeds=3 would tell the best of them apart.")


def test_noise_is_that_of_new_seeds_where_they_were_trained():
    study = study_of(lambda depth, rate: 0.9 if depth >= 5 else 0.6)
    best = study.best_trial
    study.set_user_attr(CONFIRMATIONS, {"1": {"7": 0.9, "8": 0.9001, "9": 0.8999}, "2": {"7": 0.9, "8": 0.9, "9": 0.9}})
    assert which_layers(study).tied == (best.number,)
    assert f"Trial {best.number} is better than all others beyond noise." in which_layers(study).paragraph


def test_trials_that_were_stopped_early_are_counted():
    study = study_of(lambda depth, rate: 0.9 if depth >= 5 else 0.6)
    for _ in range(3):
        study.add_trial(trial_of(None, {"depth": 1}, {"depth": KINDS["depth"]}, state=TrialState.PRUNED))
    assert "3 trials that were stopped early do not count." in which_layers(study).paragraph


def test_rates_that_come_with_depth_are_no_effect_of_depth():
    # Deep trials have the better rates.
    study, rng = study_of(lambda depth, rate: 0.5, trials=0), np.random.default_rng(0)
    for number in range(200):
        depth = number % 10
        rate = np.clip(rng.random() * 0.7 + 0.03 * depth, 0, 1)
        score = 0.5 + 0.4 * (rate > 0.5) + 0.01 * rng.standard_normal()
        params = {"depth": depth, "lr": 10 ** (-4 + 2 * rate)}
        study.add_trial(trial_of(score, params, {"depth": KINDS["depth"], "lr": RATES}))
    by_depth = [np.mean([t.value for t in study.trials if (t.params["depth"] >= 5) == deep]) for deep in (True, False)]
    assert by_depth[0] - by_depth[1] > 0.05
    assert not any(told.found.is_clear for told in which_layers(study).told)
