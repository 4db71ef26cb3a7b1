"""Intervals hold the truth as often as they say, and swap tests err as seldom as they say, with groups and without."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from trainers import TASKS
from trainers.tasks.resampling import Mean, bca_interval, exact_swap_test, score_interval, swap_test, units_of

CLASSIFICATION = TASKS["classification"]


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(1)


def answers(hits) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two classes that are right or wrong about class 1, and these targets."""
    return torch.eye(2)[torch.as_tensor(hits).long()] * 4, torch.ones(len(hits), dtype=torch.long)


def patients(rng, count: int, share: float):
    """Groups of about 6 images, in each of which a model is right about its own share of images."""
    groups = np.repeat(np.arange(count), rng.poisson(5, count) + 1)
    return groups, rng.random(len(groups)) < rng.beta(2.5 * share, 2.5 * (1 - share), count)[groups]


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).exponential(size=400)
    expected = bootstrap((values,), np.mean, n_resamples=4000, rng=0).confidence_interval
    found = bca_interval(mean_of(values), np.arange(400), draws=4000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_intervals_of_grouped_images_hold_the_truth_as_often_as_they_say(metric):
    rng, truth, tries = np.random.default_rng(0), 0.8, 300
    right, wrong = math.log1p(math.exp(-4)), math.log1p(math.exp(4))
    expected = truth if metric == "accuracy" else truth * right + (1 - truth) * wrong
    held = {True: [], False: []}
    for number in range(tries):
        groups, hits = patients(rng, 40, truth)
        # The same images taken for independent, which is far off.
        for is_told in (True, False) if number < tries // 3 else (True,):
            low, high = CLASSIFICATION.interval(metric, *answers(hits), groups if is_told else None)
            held[is_told].append(low <= expected <= high)
    assert 0.92 <= np.mean(held[True]) <= 0.97
    assert np.mean(held[False]) < 0.85


@pytest.mark.parametrize(("count", "least"), [(2, 0.8), (4, 0.8), (20, 0.91)])
def test_the_interval_of_a_loss_holds_the_truth_for_few_groups_too_and_is_never_below_0(count, least):
    rng, held = np.random.default_rng(1), []
    for _ in range(200):
        units = np.repeat(np.arange(count), rng.integers(3, 9, count))
        losses = rng.exponential(size=count)[units] * rng.exponential(size=len(units))
        low, high = score_interval(Mean(losses, lowest=0.0), units)
        assert 0 <= low < high
        held.append(low <= 1 <= high)
    assert least <= np.mean(held)


def test_losses_that_are_all_alike_are_an_interval_of_no_width():
    assert score_interval(Mean(np.full(6, 0.25)), np.arange(6)) == (0.25, 0.25)


def test_where_all_images_are_right_the_interval_is_that_of_one_image_of_each_group():
    groups = np.repeat(np.arange(10), 20)
    found = CLASSIFICATION.interval("accuracy", *answers([True] * 200), groups)
    assert found == CLASSIFICATION.interval("accuracy", *answers([True] * 10))


def test_one_group_has_no_interval():
    assert np.isnan(CLASSIFICATION.interval("loss", *answers([True, False]), np.zeros(2, int))).all()


@settings(deadline=None, max_examples=30)
@given(gains=st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_the_exact_test_counts_all_ways_to_swap(gains):
    signs = np.array(list(itertools.product((-1, 1), repeat=len(gains))))
    expected = np.mean(signs @ gains >= sum(gains))
    assert exact_swap_test(np.array(gains)) == pytest.approx(expected)


@given(new=st.integers(0, 40), old=st.integers(0, 40))
def test_of_single_images_the_exact_test_is_mcnemars(new, old):
    gains = np.array([1] * new + [-1] * old + [0] * 5)
    expected = binomtest(new, new + old, alternative="greater").pvalue if new + old else 1.0
    assert exact_swap_test(gains) == pytest.approx(expected)


def swapped(hits, units, alpha: float) -> float:
    """The p-value of accuracies by :func:`swap_test`, from whether each model is right, (2, N)."""
    differs = np.bincount(units, hits[0] != hits[1]) > 0
    return swap_test(mean_of(hits.astype(float).ravel()), units, differs, 1.0, alpha)


def test_few_units_are_swapped_in_all_ways_and_many_at_random():
    rng = np.random.default_rng(0)
    for count in (8, 60):
        units = np.repeat(np.arange(count), 3)
        hits = np.stack([rng.random(3 * count) < share for share in (0.6, 0.8)])
        gains = np.bincount(units, hits[1].astype(int) - hits[0]).astype(int)
        found, expected = swapped(hits, units, 0.001), exact_swap_test(gains)
        assert found == pytest.approx(expected, rel=1e-9 if count == 8 else 0.5)


def test_a_draw_is_enough_to_be_as_sure_as_the_level_asks():
    hits = np.stack([np.zeros(60, bool), np.ones(60, bool)])
    assert swapped(hits, np.arange(60), 1e-5) <= 1e-6


def test_one_group_decides_nothing_however_many_images_it_has():
    hits = np.stack([np.zeros(500, bool), np.ones(500, bool)])
    assert swapped(hits, units_of(500, np.zeros(500, int)), 0.05) == 0.5
