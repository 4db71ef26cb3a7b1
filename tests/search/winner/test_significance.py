"""Whether one model is better than another beyond chance."""

import numpy as np
import pytest
import torch

from search.winner.significance import compare_models
from trainers import TASKS
from trainers.tasks.regions import region_rows

CLASSIFICATION, REGRESSION = TASKS["classification"], TASKS["regression"]


def answers(hits: list[bool]) -> torch.Tensor:
    """Logits of two classes that are right or wrong about class 1."""
    return torch.eye(2)[torch.tensor(hits).long()] * 4


def test_what_is_as_good_or_better_by_a_few_images_only_is_not_better():
    targets = torch.ones(100, dtype=torch.long)
    old = answers([True] * 80 + [False] * 20)
    same = compare_models(CLASSIFICATION, "accuracy", old, old, targets)
    assert (same.p_value, same.low, same.high, same.is_better) == (1.0, 0.0, 0.0, False)
    few = compare_models(CLASSIFICATION, "accuracy", old, answers([True] * 84 + [False] * 16), targets)
    assert few.new - few.old == pytest.approx(0.04)
    # Four of four images: p is 1 / 16.
    assert few.p_value == pytest.approx(0.0625)
    assert not few.is_better
    assert compare_models(CLASSIFICATION, "accuracy", old, answers([True] * 85 + [False] * 15), targets).is_better
    worse = compare_models(CLASSIFICATION, "accuracy", answers([True] * 100), old, targets)
    assert worse.p_value > 0.999
    assert worse.high < 0
    assert not worse.is_better


def test_of_errors_less_is_better():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(200, 1, generator=generator)
    near, far = (targets + spread * torch.randn(200, 1, generator=generator) for spread in (0.1, 0.5))
    found = compare_models(REGRESSION, "rmse", far, near, targets)
    assert found.p_value < 0.001
    assert found.low < found.high < 0
    assert found.is_better
    assert not compare_models(REGRESSION, "rmse", near, far, targets).is_better
    assert compare_models(REGRESSION, "r2", far, near, targets).is_better


def equal_models(generator, images: int, groups: int | None):
    """Two equally good models of three classes, their targets, and the groups that images belong to."""
    belongs = torch.arange(images) if groups is None else torch.randint(groups, (images,), generator=generator)
    # All images of a patient show one class, and are hard or easy for a model together.
    truth, *of_group = (torch.randn(len(belongs), 3, generator=generator)[belongs] for _ in range(3))
    old, new = (truth + own + 0.3 * torch.randn(images, 3, generator=generator) for own in of_group)
    return old, new, truth.argmax(1), None if groups is None else belongs.numpy()


@pytest.mark.parametrize(
    ("metric", "alpha", "images", "groups"),
    [
        *[("accuracy", 0.05, 80, None), ("loss", 0.3, 80, None), ("macro_f1", 0.1, 80, None)],
        # Few images, at which a bootstrap promotes every sixth equal model.
        *[("loss", 0.05, 3, None), ("balanced_accuracy", 0.05, 12, None)],
        *[("accuracy", 0.1, 300, 30), ("loss", 0.1, 300, 30)],
    ],
)
def test_equal_models_pass_for_better_no_more_often_than_allowed(metric, alpha, images, groups):
    generator, tries = torch.Generator().manual_seed(1), 100
    passed = 0
    for _ in range(tries):
        old, new, targets, belongs = equal_models(generator, images, groups)
        passed += compare_models(CLASSIFICATION, metric, old, new, targets, alpha, belongs).is_better
    # Two standard deviations of the count above what is allowed.
    assert passed <= tries * alpha + 2 * (tries * alpha * (1 - alpha)) ** 0.5


def test_images_of_a_group_that_are_taken_for_independent_pass_too_often():
    generator, tries = torch.Generator().manual_seed(1), 100
    passed = sum(
        compare_models(CLASSIFICATION, "accuracy", *equal_models(generator, 300, 30)[:3], alpha=0.1).is_better
        for _ in range(tries)
    )
    assert passed > 20


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_is_right_about_every_image_is_better_by_every_metric(task):
    old, new, targets = models_of(task)
    groups = np.arange(len(targets)) // 2
    # A draw of boxes takes a hundred times as long as one of sums.
    for metric in TASKS[task].metrics if task != "detection" else ["map50"]:
        found = compare_models(TASKS[task], metric, old, new, targets, 0.01, groups)
        assert found.is_better, metric
        assert not compare_models(TASKS[task], metric, new, old, targets, 0.01, groups).is_better, metric
        assert (found.images, found.groups) == (len(targets), len(targets) // 2)
        assert found.low <= found.new - found.old <= found.high


def models_of(task: str):
    """Outputs of a poor and of a perfect model for 24 images, and the targets."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(24, 3, generator=generator)
    if task == "classification":
        targets = torch.arange(24) % 3
        return noise, 9 * torch.eye(3)[targets], targets
    if task == "multilabel":
        targets = torch.randint(2, (24, 3), generator=generator).float()
        return noise, 18 * targets - 9, targets
    if task == "regression":
        targets = torch.randn(24, 3, generator=generator)
        return noise, targets + 0.01 * noise, targets
    if task == "segmentation":
        targets = torch.randint(3, (24, 4, 4), generator=generator)
        logits = torch.randn(24, 3, 4, 4, generator=generator), 9 * torch.eye(3)[targets].permute(0, 3, 1, 2)
        return *(region_rows(one, targets) for one in logits), targets
    corners = torch.rand(24, 2, 2, generator=generator) * 10
    targets = torch.cat([corners, corners + 10, torch.arange(48).view(24, 2, 1) % 3], dim=2)
    scores = torch.rand(24, 2, 1, generator=generator)
    shifted = targets + torch.tensor([7.0, 7.0, 7.0, 7.0, 0.0])
    return torch.cat([shifted, scores], 2), torch.cat([targets, scores], 2), targets
