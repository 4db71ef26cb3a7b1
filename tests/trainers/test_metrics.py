import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from trainers import METRICS, interval, scores

RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(RNG.normal(0, 1, (200, 4)).astype(np.float32))
TARGETS = torch.from_numpy(RNG.integers(0, 4, 200))


def test_scores_agree_with_scikit_learn():
    truth, guess = TARGETS.numpy(), LOGITS.argmax(1).numpy()
    found = scores(LOGITS, TARGETS)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert found["loss"] == pytest.approx(log_loss(truth, LOGITS.double().softmax(1).numpy()), rel=1e-5)


def test_a_class_that_does_not_occur_is_left_out_of_balanced_accuracy():
    targets = torch.tensor([0, 0, 1, 1])
    logits = torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    assert scores(logits, targets)["balanced_accuracy"] == pytest.approx(0.75)


def test_the_interval_of_accuracy_is_wilsons():
    # 8 of 10: (0.4902, 0.9433) by the closed formula.
    logits = torch.eye(2)[torch.tensor([0] * 8 + [1] * 2)]
    assert interval("accuracy", logits, torch.zeros(10, dtype=torch.int64)) == pytest.approx(
        (0.49016, 0.94331), abs=1e-4
    )


@pytest.mark.parametrize("metric", METRICS)
def test_an_interval_encloses_the_score_and_is_the_same_each_time(metric):
    low, high = interval(metric, LOGITS, TARGETS)
    assert low < scores(LOGITS, TARGETS)[metric] < high
    assert (low, high) == interval(metric, LOGITS, TARGETS)
