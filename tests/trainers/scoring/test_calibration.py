"""Temperatures and calibration errors against references written out."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from trainers import TASKS, calibration_error, calibration_interval, fit_temperature


def drawn(task: str, seed: int, sharpness: float, count: int = 400):
    """Logits, and targets that are drawn from their probabilities once the logits are divided by ``sharpness``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 4, generator=generator) * 2
    if task == "classification":
        targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    else:
        targets = torch.bernoulli(logits.sigmoid(), generator=generator)
    return logits * sharpness, targets


def likelihood(task: str, logits: torch.Tensor, targets: torch.Tensor) -> float:
    loss = F.cross_entropy if task == "classification" else F.binary_cross_entropy_with_logits
    return float(loss(logits.double(), targets if task == "classification" else targets.double()))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@given(seed=st.integers(0, 10**6), log_sharpness=st.floats(-4, 4))
@settings(max_examples=25, deadline=None)
def test_the_temperature_is_where_a_search_over_all_of_them_finds_the_likeliest_targets(task, seed, log_sharpness):
    logits, targets = drawn(task, seed, 10**log_sharpness)
    found = fit_temperature(task, logits, targets)

    def loss(log_t: float) -> float:
        return likelihood(task, logits.double() / np.exp(log_t), targets)

    centre = log_sharpness * np.log(10)
    best = minimize_scalar(loss, bounds=(centre - 3, centre + 3), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found == pytest.approx(10**log_sharpness, rel=0.5)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_no_temperature_is_fitted_where_none_is_best(task):
    logits, _ = drawn(task, 0, 1.0)
    right = logits.argmax(1) if task == "classification" else (logits > 0).float()
    wrong = logits.argmin(1) if task == "classification" else (logits < 0).float()
    assert fit_temperature(task, logits, right) == 1.0
    assert fit_temperature(task, logits, wrong) == 1.0
    assert fit_temperature(task, torch.zeros(4, 4), right[:4]) == 1.0


def test_metrics_that_depend_on_labels_are_those_without_a_temperature():
    for task in ("classification", "multilabel"):
        logits, targets = drawn(task, 1, 7.0)
        # In single precision probabilities next to 1 are ties already.
        logits = logits.double()
        scores = [TASKS[task].scores(x, targets) for x in (logits, logits / fit_temperature(task, logits, targets))]
        names = scores[0].keys() - {"loss"}
        assert [scores[0][name] for name in names] == pytest.approx([scores[1][name] for name in names])
        assert scores[1]["loss"] < 0.8 * scores[0]["loss"]


def ece_by_hand(confidences: np.ndarray, truths: np.ndarray) -> float:
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            total += inside.mean() * abs(confidences[inside].mean() - truths[inside].mean())
    return total


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_the_calibration_error_is_the_mean_gap_over_fifteen_bins(sharpness):
    logits, targets = (t.double() if t.is_floating_point() else t for t in drawn("classification", 2, sharpness))
    confidences, labels = (t.numpy() for t in logits.softmax(1).max(1))
    found = calibration_error("classification", logits, targets)
    assert found == pytest.approx(ece_by_hand(confidences, labels == targets.numpy()), abs=1e-6)
    logits, targets = (t.double() for t in drawn("multilabel", 2, sharpness))
    found = calibration_error("multilabel", logits, targets)
    assert found == pytest.approx(ece_by_hand(logits.sigmoid().numpy().ravel(), targets.numpy().ravel()), abs=1e-6)
    library = binary_calibration_error(logits.sigmoid(), targets.long(), n_bins=15).item()
    assert found == pytest.approx(library, abs=1e-6)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_probabilities_that_are_too_sure_are_mended_on_images_that_were_not_fitted_to(task):
    logits, targets = drawn(task, 3, 6.0)
    temperature = fit_temperature(task, logits, targets)
    logits, targets = drawn(task, 4, 6.0)
    assert calibration_error(task, logits / temperature, targets) < 0.5 * calibration_error(task, logits, targets)


@pytest.mark.parametrize(
    ("task", "sharpness", "is_grouped"),
    [("classification", 2.0, True), ("multilabel", 1.5, False)],
)
def test_intervals_of_the_calibration_error_hold_the_true_one_as_often_as_they_say(task, sharpness, is_grouped):
    logits, _ = drawn(task, 0, 1.0, 200_000)
    # Probabilities in place of what is drawn from them give the error without noise.
    likely = logits.softmax(1).max(1).values if task == "classification" else logits.sigmoid()
    said = (logits * sharpness).double()
    said = said.softmax(1).max(1).values if task == "classification" else said.sigmoid()
    truth, tries = ece_by_hand(said.numpy().ravel(), likely.numpy().ravel()), 60
    held = 0
    for seed in range(1, tries + 1):
        # Each image of a group is the same one.
        logits, targets = drawn(task, seed, sharpness, 100 if is_grouped else 300)
        copies, groups = (3, np.repeat(np.arange(100), 3)) if is_grouped else (1, None)
        logits, targets = (part.repeat_interleave(copies, 0) for part in (logits, targets))
        low, high = calibration_interval(task, logits, targets, groups)
        held += low <= truth <= high
    # Two standard deviations of the share below 95%.
    assert held / tries >= 0.89
    assert 0 <= low < high < 1


def test_one_group_has_no_interval_of_its_calibration_error():
    logits, targets = drawn("classification", 1, 1.0, 20)
    assert np.isnan(calibration_interval("classification", logits, targets, np.zeros(20, int))).all()


def test_the_interval_of_the_calibration_error_ends_at_one():
    logits = torch.tensor([[9.0, 0.0], [3.0, 0.0], [1.5, 0.0]])
    assert calibration_interval("classification", logits, torch.ones(3, dtype=torch.int64))[1] == 1
