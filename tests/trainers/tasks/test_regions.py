import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss
from torchmetrics.functional.classification import multiclass_jaccard_index, multiclass_stat_scores

from strategies import IGNORED
from trainers.tasks.regions import dice, iou_per_class, loss, mean_iou, pixel_accuracy, region_rows

CLASSES = 6


def batch(seed, images=5, shown=CLASSES, ignored=0.2, side=8):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, CLASSES, side, side, generator=generator)
    targets = torch.randint(shown, (images, side, side), generator=generator).to(torch.uint8)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORED
    return logits, targets


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), shown=st.integers(1, CLASSES), predicted=st.integers(1, CLASSES))
def test_scores_agree_with_those_of_scikit_learns_confusion_matrix(seed, shown, predicted):
    logits, targets = batch(seed, shown=shown, side=4)
    logits[:, predicted:] -= 10
    rows, counted = region_rows(logits, targets), targets != IGNORED
    truth, guess = targets[counted].numpy(), logits.argmax(1)[counted].numpy()
    matrix = confusion_matrix(truth, guess, labels=range(CLASSES)).astype(float)
    hits, either = matrix.diagonal(), matrix.sum(0) + matrix.sum(1)
    seen = either > 0
    expected = np.full(CLASSES, np.nan)
    expected[seen] = (hits / (either - hits + ~seen))[seen]
    np.testing.assert_allclose(iou_per_class(rows).numpy(), expected)
    assert mean_iou(rows, targets) == pytest.approx(expected[seen].mean())
    assert dice(rows, targets) == pytest.approx((2 * hits[seen] / either[seen]).mean())
    assert pixel_accuracy(rows, targets) == pytest.approx(hits.sum() / matrix.sum())
    probabilities = logits.double().softmax(1).permute(0, 2, 3, 1)[counted].numpy()
    assert loss(rows, targets) == pytest.approx(
        log_loss(truth, probabilities, labels=range(CLASSES)), rel=1e-5, abs=1e-6
    )


def test_counts_of_each_image_agree_with_torchmetrics():
    logits, targets = batch(0)
    rows = region_rows(logits, targets)
    reference = multiclass_stat_scores(
        logits, targets.long(), CLASSES, average=None, multidim_average="samplewise", ignore_index=IGNORED
    )
    hits, wrong, _, missed, true = reference.unbind(2)
    assert torch.equal(rows[:, : 3 * CLASSES], torch.cat([hits, hits + wrong, true], dim=1).double())
    assert torch.equal(hits + missed, true)


def test_mean_iou_agrees_with_torchmetrics():
    logits, targets = batch(1)
    reference = multiclass_jaccard_index(logits, targets.long(), CLASSES, ignore_index=IGNORED)
    assert mean_iou(region_rows(logits, targets), targets) == pytest.approx(reference.item(), rel=1e-6)


def test_rows_are_the_same_whatever_else_is_in_the_batch():
    logits, targets = batch(2)
    together = region_rows(logits, targets)
    alone = torch.cat([region_rows(logits[i : i + 1], targets[i : i + 1]) for i in range(len(logits))])
    assert together.dtype == torch.float64
    assert together.shape == (5, 3 * CLASSES + 2)
    torch.testing.assert_close(together, alone)


def test_an_image_without_pixels_that_count_changes_no_score():
    logits, targets = batch(3)
    rows = region_rows(logits, targets)
    blank = region_rows(logits[:1], torch.full_like(targets[:1], IGNORED))
    assert not blank.any()
    for score in (mean_iou, dice, pixel_accuracy, loss):
        assert score(torch.cat([rows, blank]), targets) == score(rows, targets)
        assert math.isnan(score(blank, targets))


def test_masks_that_are_found_score_one():
    _, targets = batch(4, shown=3)
    logits = 100 * torch.nn.functional.one_hot(targets.long() % CLASSES, CLASSES).permute(0, 3, 1, 2).float()
    rows = region_rows(logits, targets)
    assert mean_iou(rows, targets) == dice(rows, targets) == pixel_accuracy(rows, targets) == 1
    assert loss(rows, targets) == pytest.approx(0, abs=1e-6)
    assert iou_per_class(rows)[:3].tolist() == [1, 1, 1]
    assert iou_per_class(rows)[3:].isnan().all()


def test_rows_of_logits_in_half_precision_are_close_to_those_in_full():
    logits, targets = batch(5)
    found, expected = region_rows(logits.bfloat16(), targets), region_rows(logits.bfloat16().float(), targets)
    torch.testing.assert_close(found, expected)
