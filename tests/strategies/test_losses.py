import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from strategies import LOSSES, Strategy

LOGITS = np.random.default_rng(0).normal(0, 2, (8, 5))
TARGETS = np.array([0, 1, 2, 3, 4, 0, 1, 2])
ONE_HOT = np.eye(5)[TARGETS]
LOG_P = log_softmax(LOGITS, axis=1)
STRATEGY = Strategy(label_smoothing=0.2, focal_gamma=1.5)

REFERENCES = {
    "cross_entropy": -(ONE_HOT * LOG_P).sum(1).mean(),
    "label_smoothing": -((0.8 * ONE_HOT + 0.2 / 5) * LOG_P).sum(1).mean(),
    "focal": -(ONE_HOT * (1 - np.exp(LOG_P)) ** 1.5 * LOG_P).sum(1).mean(),
    "bce": (np.log1p(np.exp(-LOGITS)) * ONE_HOT + np.log1p(np.exp(LOGITS)) * (1 - ONE_HOT)).sum(1).mean(),
    "mse": ((LOGITS - ONE_HOT) ** 2).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_formula(name):
    found = LOSSES[name](torch.from_numpy(LOGITS), torch.from_numpy(TARGETS), STRATEGY)
    assert found.item() == pytest.approx(REFERENCES[name], rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 100.0, -100.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_loss_and_its_gradient_are_finite_however_sure_the_model_is(name, scale, gamma):
    logits = (torch.eye(5)[:3] * scale).requires_grad_(True)
    loss = LOSSES[name](logits, torch.tensor([0, 1, 3]), Strategy(focal_gamma=gamma))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_every_loss_a_strategy_can_name_is_there():
    from strategies import CHOICES

    assert set(LOSSES) == set(CHOICES["loss"].options)
