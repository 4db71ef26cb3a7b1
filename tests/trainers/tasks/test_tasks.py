import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn import metrics as reference

from trainers import TASKS
from trainers.tasks.regions import region_rows
from trainers.tasks.resampling import repeated

RNG = np.random.default_rng(0)
OUTPUTS = torch.from_numpy(RNG.normal(0, 1, (200, 4)).astype(np.float32))
CLASSES = torch.from_numpy(RNG.integers(0, 4, 200))
SHOWN = torch.from_numpy(RNG.integers(0, 2, (200, 4)).astype(np.float32))
NUMBERS = OUTPUTS * torch.tensor([1.0, 2.0, -1.0, 0.5]) + torch.from_numpy(
    RNG.normal(0, 1, (200, 4)).astype(np.float32)
)
MASKS = torch.from_numpy(RNG.integers(0, 4, (12, 8, 8)).astype(np.uint8))
CORNERS = torch.from_numpy(RNG.uniform(0, 20, (12, 3, 2)).astype(np.float32))
BOXES = torch.cat([CORNERS, CORNERS + 12, torch.from_numpy(RNG.integers(0, 4, (12, 3, 1)).astype(np.float32))], 2)
SCORES = torch.from_numpy(RNG.uniform(0.1, 1, (12, 3, 1)).astype(np.float32))
SHIFT = torch.from_numpy(RNG.uniform(0, 4, (12, 3, 1)).astype(np.float32)) * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])

TARGETS = {
    "classification": CLASSES,
    "multilabel": SHOWN,
    "regression": NUMBERS,
    "segmentation": MASKS,
    "detection": BOXES,
}
POOR = {
    **dict.fromkeys(("classification", "multilabel", "regression"), OUTPUTS),
    "segmentation": region_rows(torch.from_numpy(RNG.normal(0, 1, (12, 4, 8, 8)).astype(np.float32)), MASKS),
    "detection": torch.cat([BOXES + SHIFT, SCORES], 2),
}
PERFECT = {
    "classification": 20 * torch.eye(4)[CLASSES],
    "multilabel": 40 * SHOWN - 20,
    "regression": NUMBERS,
    "segmentation": region_rows(20 * torch.eye(4)[MASKS.long()].permute(0, 3, 1, 2), MASKS),
    "detection": torch.cat([BOXES, SCORES], 2),
}
NAMES = ("a", "b", "c", "d")
EVERY_METRIC = [(task.name, metric) for task in TASKS.values() for metric in task.metrics]


def test_scores_of_a_classifier_agree_with_scikit_learn():
    truth, guess = CLASSES.numpy(), OUTPUTS.argmax(1).numpy()
    assert TASKS["classification"].scores(OUTPUTS, CLASSES) == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, guess),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, guess),
            "macro_f1": reference.f1_score(truth, guess, average="macro"),
            "loss": reference.log_loss(truth, OUTPUTS.double().softmax(1).numpy()),
        },
        rel=1e-5,
    )


@given(
    guess=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    truth=st.lists(st.integers(0, 4), min_size=30, max_size=30),
)
def test_scores_of_classes_that_are_missing_or_never_predicted_agree_with_scikit_learn(guess, truth):
    truth = truth[: len(guess)]
    found = TASKS["classification"].scores(torch.eye(5)[guess], torch.tensor(truth))
    present = sorted(set(truth))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, guess, average="macro", zero_division=0))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.recall_score(truth, guess, labels=present, average="macro", zero_division=0)
    )


def test_scores_of_several_labels_agree_with_scikit_learn():
    truth, probabilities = SHOWN.numpy(), OUTPUTS.double().sigmoid().numpy()
    guess = probabilities >= 0.5
    losses = [reference.log_loss(truth[:, k], probabilities[:, k]) for k in range(4)]
    assert TASKS["multilabel"].scores(OUTPUTS, SHOWN) == pytest.approx(
        {
            "mean_average_precision": reference.average_precision_score(truth, probabilities, average="macro"),
            "macro_f1": reference.f1_score(truth, guess, average="macro"),
            "micro_f1": reference.f1_score(truth, guess, average="micro"),
            "exact_match": reference.accuracy_score(truth, guess),
            "loss": np.mean(losses),
        },
        rel=1e-5,
    )


def test_scores_of_numbers_agree_with_scikit_learn_and_scipy():
    truth, guess = NUMBERS.double().numpy(), OUTPUTS.double().numpy()
    assert TASKS["regression"].scores(OUTPUTS, NUMBERS) == pytest.approx(
        {
            "rmse": reference.root_mean_squared_error(truth, guess),
            "mae": reference.mean_absolute_error(truth, guess),
            "r2": reference.r2_score(truth, guess),
            "spearman": np.mean([spearmanr(truth[:, k], guess[:, k]).statistic for k in range(4)]),
            "loss": reference.mean_squared_error(truth, guess),
        },
        rel=1e-5,
    )


def test_a_class_that_does_not_occur_is_left_out_of_balanced_accuracy():
    logits = torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    assert TASKS["classification"].scores(logits, torch.tensor([0, 0, 1, 1]))["balanced_accuracy"] == pytest.approx(
        0.75
    )


def test_a_label_that_does_not_occur_is_left_out_of_mean_average_precision():
    shown = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert TASKS["multilabel"].scores(shown, shown)["mean_average_precision"] == 1.0


def test_the_interval_of_accuracy_is_wilsons():
    # 8 of 10: (0.4902, 0.9433) by the closed formula.
    logits = torch.eye(2)[torch.tensor([0] * 8 + [1] * 2)]
    found = TASKS["classification"].interval("accuracy", logits, torch.zeros(10, dtype=torch.int64))
    assert found == pytest.approx((0.49016, 0.94331), abs=1e-4)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_an_interval_encloses_the_score_and_is_the_same_each_time(task, metric):
    outputs, targets = POOR[task], TARGETS[task]
    low, high = TASKS[task].interval(metric, outputs, targets)
    assert low < TASKS[task].scores(outputs, targets)[metric] < high
    assert (low, high) == TASKS[task].interval(metric, outputs, targets)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_a_draw_scores_as_its_images_do_one_after_another(task, metric):
    outputs, targets = POOR[task].clone(), TARGETS[task]
    if task == "detection":
        # Of equal scores in copies of an image there is more than one order.
        outputs[..., 5] += torch.arange(outputs[..., 5].numel()).view_as(outputs[..., 5]) * 1e-5
    else:
        # Equal answers for different images, such as those of a model that does not know a class.
        outputs[:6] = outputs[0]
    weights = np.random.default_rng(1).integers(0, 3, (20, len(targets))).astype(np.float64)
    weights[0] = 1
    weights[1, 8:] = 0
    found = TASKS[task].scored(metric, outputs, targets)(weights)
    expected = repeated(TASKS[task].metrics[metric])(outputs, targets)(weights)
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(("task", "metric"), EVERY_METRIC)
def test_better_outputs_score_better_in_the_direction_that_the_task_says(task, metric):
    targets = TARGETS[task]
    poor, good = (TASKS[task].scores(outputs, targets)[metric] for outputs in (POOR[task], PERFECT[task]))
    assert good < poor if metric in TASKS[task].lower_is_better else good > poor


@pytest.mark.parametrize("task", TASKS)
def test_a_single_image_has_a_finite_score_to_watch(task):
    assert math.isfinite(TASKS[task].scores(POOR[task][:1], TARGETS[task][:1])[TASKS[task].watched])


def test_answers_of_a_classifier_are_the_likeliest_label_and_all_probabilities():
    answers = TASKS["classification"].answers(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), ("cat", "dog"))
    assert list(answers) == ["label", "probability", "probability_cat", "probability_dog"]
    assert answers["label"].tolist() == ["dog", "cat"]
    assert answers["probability_cat"] + answers["probability_dog"] == pytest.approx([1, 1])
    assert answers["probability"] == pytest.approx([answers["probability_dog"][0], answers["probability_cat"][1]])


def test_answers_of_several_labels_are_those_of_at_least_even_probability():
    answers = TASKS["multilabel"].answers(torch.tensor([[1.0, 2.0], [-3.0, 0.0], [-1.0, -1.0]]), ("cat", "dog"))
    assert answers["labels"].tolist() == ["cat;dog", "dog", ""]
    assert answers["probability_dog"][1] == pytest.approx(0.5)


def test_answers_of_a_regression_are_its_numbers():
    answers = TASKS["regression"].answers(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ("age", "weight"))
    assert {name: column.tolist() for name, column in answers.items()} == {"age": [1.0, 3.0], "weight": [2.0, 4.0]}


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.dense is None])
def test_no_images_give_no_answers_under_the_same_names(task):
    empty, some = (TASKS[task].answers(OUTPUTS[:count], NAMES) for count in (0, 3))
    assert list(empty) == list(some)
    assert {len(column) for column in empty.values()} == {0}
    assert [column.dtype for column in empty.values()] == [column.dtype for column in some.values()]


def test_numbers_are_learnt_in_standard_units_and_come_back_in_their_own():
    targets = 1000 * NUMBERS + 5
    scale = TASKS["regression"].scale(targets)
    units = scale.standardise(targets)
    assert units.mean(0) == pytest.approx(torch.zeros(4), abs=1e-4)
    assert units.std(0, unbiased=False) == pytest.approx(torch.ones(4), rel=1e-4)
    assert torch.allclose(scale.restore(units), targets, rtol=1e-4)


def test_classes_have_no_units():
    assert TASKS["classification"].scale(CLASSES) is None
    assert TASKS["multilabel"].scale(SHOWN) is None
