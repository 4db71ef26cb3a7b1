"""Whether one model is better than another beyond chance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from search.winner.significance import compare_models, mcnemar
from trainers import TASKS

CLASSIFICATION, REGRESSION = TASKS["classification"], TASKS["regression"]


def answers(hits: list[bool]) -> torch.Tensor:
    """Logits of two classes that are right or wrong about class 1."""
    return torch.eye(2)[torch.tensor(hits).long()] * 4


@settings(deadline=None, max_examples=50)
@given(both=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemars_test_is_the_binomial_of_the_images_of_which_one_alone_is_right(both):
    old, new = (torch.tensor(hits) for hits in zip(*both, strict=True))
    only_old = sum(a and not b for a, b in both)
    only_new = sum(b and not a for a, b in both)
    expected = binomtest(only_new, only_old + only_new).pvalue if only_old + only_new else 1.0
    assert mcnemar(old, new) == pytest.approx(expected)
    assert mcnemar(old, new) == pytest.approx(mcnemar(new, old))


def test_what_is_as_good_or_better_by_a_few_images_only_is_not_better():
    targets = torch.ones(100, dtype=torch.long)
    old = answers([True] * 80 + [False] * 20)
    same = compare_models(CLASSIFICATION, "accuracy", old, old, targets)
    assert (same.p_value, same.low, same.high, same.is_better) == (1.0, 0.0, 0.0, False)
    few = compare_models(CLASSIFICATION, "accuracy", old, answers([True] * 85 + [False] * 15), targets)
    assert few.new - few.old == pytest.approx(0.05)
    # Five of five images: p is 2 / 32.
    assert few.p_value == pytest.approx(0.0625)
    assert not few.is_better
    assert compare_models(CLASSIFICATION, "accuracy", old, answers([True] * 86 + [False] * 14), targets).is_better
    worse = compare_models(CLASSIFICATION, "accuracy", answers([True] * 100), old, targets)
    assert worse.p_value < 0.001
    assert worse.high < 0
    assert not worse.is_better


def test_of_errors_less_is_better():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(200, 1, generator=generator)
    near, far = (targets + spread * torch.randn(200, 1, generator=generator) for spread in (0.1, 0.5))
    found = compare_models(REGRESSION, "rmse", far, near, targets)
    assert found.p_value is None
    assert found.low < found.high < 0
    assert found.is_better
    assert not compare_models(REGRESSION, "rmse", near, far, targets).is_better
    assert compare_models(REGRESSION, "r2", far, near, targets).is_better


@pytest.mark.parametrize(("metric", "alpha"), [("accuracy", 0.05), ("loss", 0.05), ("loss", 0.3)])
def test_equal_models_pass_for_better_no_more_often_than_allowed(metric, alpha):
    generator = torch.Generator().manual_seed(1)
    passed = 0
    for _ in range(60):
        truth = torch.randn(80, 3, generator=generator)
        targets = truth.argmax(1)
        old, new = (truth + torch.randn(80, 3, generator=generator) for _ in range(2))
        passed += compare_models(CLASSIFICATION, metric, old, new, targets, alpha).is_better
    # Half of alpha is on the side of better; three standard deviations of the count above that.
    expected = 60 * alpha / 2
    assert passed <= expected + 3 * max(1.0, expected) ** 0.5
