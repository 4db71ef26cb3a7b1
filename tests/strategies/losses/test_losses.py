import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from strategies import CHOICES, LOSSES, TASK_LOSSES, Strategy
from strategies.losses import distillation

OUTPUTS = np.random.default_rng(0).normal(0, 2, (8, 5))
CLASSES = np.array([0, 1, 2, 3, 4, 0, 1, 2])
ONE_HOT = np.eye(5)[CLASSES]
SHOWN = np.random.default_rng(1).integers(0, 2, (8, 5)).astype(float)
NUMBERS = np.random.default_rng(2).normal(0, 1, (8, 5))
TARGETS = {"classification": CLASSES, "multilabel": SHOWN, "regression": NUMBERS}
LOG_P = log_softmax(OUTPUTS, axis=1)
P_TRUE = np.where(SHOWN == 1, 1 / (1 + np.exp(-OUTPUTS)), 1 / (1 + np.exp(OUTPUTS)))
ERROR = np.abs(OUTPUTS - NUMBERS)
STRATEGY = Strategy(label_smoothing=0.2, focal_gamma=1.5, poly1_epsilon=2.0)
SCALED = Strategy(loss="mse", mse_weight=3.0, mse_target=7.0)

REFERENCES = {
    ("classification", "cross_entropy"): -(ONE_HOT * LOG_P).sum(1).mean(),
    ("classification", "label_smoothing"): -((0.8 * ONE_HOT + 0.2 / 5) * LOG_P).sum(1).mean(),
    ("classification", "focal"): -(ONE_HOT * (1 - np.exp(LOG_P)) ** 1.5 * LOG_P).sum(1).mean(),
    ("classification", "poly1"): (-LOG_P + 2.0 * (1 - np.exp(LOG_P)))[np.arange(8), CLASSES].mean(),
    ("classification", "bce"): (
        (np.log1p(np.exp(-OUTPUTS)) * ONE_HOT + np.log1p(np.exp(OUTPUTS)) * (1 - ONE_HOT)).sum(1).mean()
    ),
    ("classification", "mse"): ((OUTPUTS - ONE_HOT) ** 2).mean(),
    ("multilabel", "bce"): -np.log(P_TRUE).mean(),
    ("multilabel", "focal"): -((1 - P_TRUE) ** 1.5 * np.log(P_TRUE)).mean(),
    ("regression", "mse"): (ERROR**2).mean(),
    ("regression", "l1"): ERROR.mean(),
    ("regression", "huber"): np.where(ERROR < 1, ERROR**2 / 2, ERROR - 0.5).mean(),
}
# From a model that knows nothing to one that is sure of the right or of a wrong class.
SCALES = (0.0, 1e-6, 100.0, -100.0)
# Those of segmentation are of pixels, and have tests of their own.
ALL = [(task, name) for task, losses in LOSSES.items() if task != "segmentation" for name in losses]


@pytest.mark.parametrize(("task", "name"), ALL)
def test_a_loss_equals_its_formula(task, name):
    found = LOSSES[task][name](torch.from_numpy(OUTPUTS), torch.from_numpy(TARGETS[task]), STRATEGY)
    assert found.item() == pytest.approx(REFERENCES[task, name], rel=1e-9)


@pytest.mark.parametrize(("task", "name"), ALL)
def test_a_loss_and_its_gradient_are_finite_however_sure_the_model_is(task, name):
    targets = torch.tensor([0, 1, 3]) if task == "classification" else torch.eye(5)[:3]
    for gamma in (0.0, 0.5, 2.0) if name == "focal" else (2.0,):
        for scale in SCALES:
            outputs = (torch.eye(5)[:3] * scale).requires_grad_(True)
            loss = LOSSES[task][name](outputs, targets, Strategy(focal_gamma=gamma))
            loss.backward()
            assert torch.isfinite(loss), (scale, gamma)
            assert torch.isfinite(outputs.grad).all(), (scale, gamma)


def test_every_loss_a_strategy_can_name_is_there():
    # A detector brings its own.
    assert {task: tuple(losses) for task, losses in LOSSES.items()} | {"detection": ("detector",)} == TASK_LOSSES
    assert {name for names in TASK_LOSSES.values() for name in names} == set(CHOICES["loss"].options)


# Every loss of classification, called alike.
CLASSIFIERS = {
    **{
        name: lambda outputs, targets, weights=None, loss=loss: loss(outputs, targets, STRATEGY, weights)
        for name, loss in LOSSES["classification"].items()
    },
    "scaled_mse": lambda outputs, targets, weights=None: LOSSES["classification"]["mse"](
        outputs, targets, SCALED, weights
    ),
}
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0], dtype=torch.float64)
SHARES = torch.from_numpy(np.random.default_rng(3).dirichlet(np.full(5, 0.5), 8))


def test_poly1_adds_the_share_that_is_missed_to_cross_entropy():
    p = np.exp(LOG_P[np.arange(8), CLASSES])
    for epsilon in (-1.0, 0.0, 2.5):
        found = LOSSES["classification"]["poly1"](
            torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES), Strategy(loss="poly1", poly1_epsilon=epsilon)
        )
        assert found.item() == pytest.approx((-np.log(p) + epsilon * (1 - p)).mean(), rel=1e-9)


def test_scaled_squared_error_weighs_and_stretches_the_true_class():
    found = LOSSES["classification"]["mse"](torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES), SCALED)
    total = 0.0
    for row, true in zip(OUTPUTS, CLASSES, strict=True):
        total += sum(3 * (value - 7) ** 2 if c == true else value**2 for c, value in enumerate(row)) / 5
    assert found.item() == pytest.approx(total / 8, rel=1e-9)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_image_counts_as_its_class_does(name):
    loss, outputs, classes = CLASSIFIERS[name], torch.from_numpy(OUTPUTS), torch.from_numpy(CLASSES)
    each = [WEIGHTS[classes[i]] * loss(outputs[i : i + 1], classes[i : i + 1]) for i in range(8)]
    assert loss(outputs, classes, WEIGHTS).item() == pytest.approx(sum(each).item() / 8, rel=1e-9)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_loss_of_shares_is_the_mixture_of_the_classes_losses(name):
    loss, outputs = CLASSIFIERS[name], torch.from_numpy(OUTPUTS)
    for weights in (None, WEIGHTS):
        total = 0.0
        for i in range(8):
            for c in range(5):
                total += SHARES[i, c].item() * loss(outputs[i : i + 1], torch.tensor([c]), weights).item() / 8
        assert loss(outputs, SHARES, weights).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_of_weight_zero_teaches_nothing(name):
    outputs = torch.from_numpy(OUTPUTS).clone().requires_grad_(True)
    weights = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    CLASSIFIERS[name](outputs, torch.from_numpy(CLASSES), weights).backward()
    assert torch.equal(outputs.grad.abs().sum(1) == 0, torch.from_numpy(CLASSES == 0))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_class_weights_and_shares_need_not_have_the_outputs_type(name):
    for dtype in (torch.float32, torch.float64):
        outputs = torch.from_numpy(OUTPUTS).to(dtype)
        for targets in (torch.from_numpy(CLASSES), SHARES.float()):
            assert CLASSIFIERS[name](outputs, targets, WEIGHTS.to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_each_label_counts_as_its_class_does(name):
    loss, outputs, shown = LOSSES["multilabel"][name], torch.from_numpy(OUTPUTS), torch.from_numpy(SHOWN)
    columns = [WEIGHTS[c] * loss(outputs[:, c : c + 1], shown[:, c : c + 1], STRATEGY) for c in range(5)]
    assert loss(outputs, shown, STRATEGY, WEIGHTS).item() == pytest.approx(sum(columns).item() / 5, rel=1e-9)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_the_loss_of_mixed_labels_is_the_mixture_of_their_losses(name):
    loss, outputs, shown = LOSSES["multilabel"][name], torch.from_numpy(OUTPUTS), torch.from_numpy(SHOWN)
    both = 0.3 * loss(outputs, shown, STRATEGY) + 0.7 * loss(outputs, 1 - shown, STRATEGY)
    mixed = loss(outputs, 0.3 * shown + 0.7 * (1 - shown), STRATEGY)
    assert mixed.item() == pytest.approx(both.item(), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.2, 20))
def test_distillation_is_the_scaled_divergence_from_the_teacher(seed, temperature):
    rng = np.random.default_rng(seed)
    own, teacher = rng.normal(0, 3, (4, 6)), rng.normal(0, 3, (4, 6))
    p, q = softmax(teacher / temperature, axis=1), softmax(own / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    found = distillation(torch.from_numpy(own), torch.from_numpy(teacher), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_distillation_teaches_the_model_and_not_the_teacher():
    own, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distillation(own, teacher, 2.0).backward()
    assert teacher.grad is None
    # The closed form of the gradient: temperature * (model's answers - teacher's), mean over images.
    expected = 2 * ((own / 2).softmax(1) - (teacher / 2).softmax(1)) / 3
    torch.testing.assert_close(own.grad, expected.detach())
    assert distillation(teacher.detach(), teacher, 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["poly1", "scaled_mse", "distillation"])
def test_a_loss_with_weights_or_a_teacher_and_its_gradient_are_finite_however_sure_the_model_is(name):
    for scale in (*SCALES, 1e4):
        outputs = (torch.eye(5)[:3] * scale).requires_grad_(True)
        if name == "distillation":
            loss = distillation(outputs, torch.eye(5)[1:4] * scale, 2.0)
        else:
            loss = CLASSIFIERS[name](outputs, torch.tensor([0, 1, 3]), WEIGHTS.float())
        loss.backward()
        assert torch.isfinite(loss), scale
        assert torch.isfinite(outputs.grad).all(), scale
