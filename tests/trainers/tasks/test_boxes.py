import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainers import TASKS
from trainers.tasks.box_draws import drawn_scores, matched_boxes
from trainers.tasks.boxes import IOU_THRESHOLDS, average_precision_per_class, map50, mar, mean_average_precision, scores

SIDE = 64
TARGETS = torch.tensor([[[4.0, 4, 20, 24, 0], [30, 30, 60, 62, 1]], [[10, 8, 34, 40, 1], [0, 0, 0, 0, -1]]])
PERFECT = torch.cat([TARGETS, torch.tensor([[0.9, 0.8], [0.7, 0.0]])[..., None]], -1)


def scene(seed, images, classes):
    """Boxes on whole pixels, and as many moved and relabelled a little as found ones, with equal scores among them."""
    draw = torch.Generator().manual_seed(seed)

    def whole(low, high, *shape):
        return torch.randint(low, high, shape, generator=draw).float()

    corner, size = whole(0, SIDE // 2, images, 5, 2), whole(2, SIDE // 2, images, 5, 2)
    labels = whole(-1, classes, images, 5, 1)
    boxes = torch.cat([corner, corner + size], -1)
    targets = torch.where(labels < 0, torch.tensor([0.0, 0, 0, 0, -1]), torch.cat([boxes, labels], -1))
    moved = boxes.repeat(1, 2, 1) + whole(-2, 3, images, 10, 4)
    moved[..., 2:] = torch.maximum(moved[..., 2:], moved[..., :2] + 1)
    guessed = torch.where(whole(0, 4, images, 10, 1) > 0, labels.repeat(1, 2, 1), whole(-1, classes, images, 10, 1))
    rows = torch.cat([moved, guessed, whole(1, 20, images, 10, 1) / 20], -1)
    return torch.where(guessed < 0, torch.tensor([0.0, 0, 0, 0, -1, 0]), rows), targets


def coco(rows, classes):
    """COCO's form of rows, with a score or without."""
    annotations = []
    for image, of_image in enumerate(rows.tolist()):
        for left, top, right, bottom, label, *score in of_image:
            if label >= 0:
                place = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                names = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "iscrowd": 0}
                annotations.append(place | names | dict(zip(["score"], score, strict=False)))
    found = COCO()
    found.dataset = {
        "images": [{"id": image} for image in range(len(rows))],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }
    found.createIndex()
    return found


def coco_stats(rows, targets, classes, of_class=None):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco(targets, classes), coco(rows, classes), "bbox")
        if of_class is not None:
            evaluation.params.catIds = [of_class]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 5), classes=st.integers(1, 4))
def test_scores_agree_with_cocos_own_evaluation(seed, images, classes):
    rows, targets = scene(seed, images, classes)
    expected = coco_stats(rows, targets, classes)
    if not (targets[..., 4] >= 0).any():
        expected[:] = math.nan
    found = scores(rows, targets)
    assert list(found) == ["map", "map50", "mar"]
    assert list(found.values()) == pytest.approx([expected[0], expected[1], expected[8]], abs=1e-6, nan_ok=True)
    by_class = [coco_stats(rows, targets, classes, label)[0] for label in range(classes)]
    expected_by_class = [math.nan if value < 0 else value for value in by_class]
    precisions = average_precision_per_class(rows, targets, classes)
    assert precisions.tolist() == pytest.approx(expected_by_class, abs=1e-6, nan_ok=True)


def test_each_score_by_name_is_that_of_all_scores():
    rows, targets = scene(0, 4, 3)
    found = scores(rows, targets)
    assert 0 < found["map"] < found["map50"] < 1
    assert [mean_average_precision(rows, targets), map50(rows, targets), mar(rows, targets)] == list(found.values())


def test_boxes_found_as_they_are_score_one():
    assert scores(PERFECT, TARGETS) == pytest.approx({"map": 1, "map50": 1, "mar": 1})


def test_unused_rows_do_not_matter():
    rows, targets = scene(1, 3, 2)
    unused = torch.tensor([0.0, 0, 0, 0, -1, 0]).expand(3, 7, 6)
    assert scores(torch.cat([unused, rows], 1), torch.cat([unused[..., :5], targets], 1)) == scores(rows, targets)


def test_boxes_found_on_an_image_without_boxes_cost_precision():
    elsewhere = torch.tensor([[[1.0, 1, 9, 9, 0, 0.99]] * 2])
    nothing = torch.tensor([[[0.0, 0, 0, 0, -1]] * 2])
    found = scores(torch.cat([PERFECT, elsewhere]), torch.cat([TARGETS, nothing]))
    assert found["map50"] < 0.9
    assert found["mar"] == pytest.approx(1)


def test_nothing_found_scores_zero():
    nothing = torch.tensor([0.0, 0, 0, 0, -1, 0]).expand(2, 3, 6)
    assert set(scores(nothing, TARGETS).values()) == {0.0}
    assert average_precision_per_class(nothing, TARGETS, 2).tolist() == [0.0, 0.0]


def test_where_no_image_has_a_box_there_is_no_score():
    nothing = torch.tensor([0.0, 0, 0, 0, -1]).expand(2, 3, 5)
    assert all(math.isnan(score) for score in scores(PERFECT, nothing).values())
    assert average_precision_per_class(PERFECT, nothing, 2).isnan().all()


def test_a_class_that_no_target_is_of_has_no_average_precision():
    rows = PERFECT.clone()
    rows[0, 0, 4] = 3
    assert average_precision_per_class(rows, TARGETS, 4).tolist() == pytest.approx(
        [0, 1, math.nan, math.nan], nan_ok=True
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), times=st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any))
def test_a_draw_of_images_scores_as_these_images_do(seed, times):
    rows, targets = scene(seed, len(times), 3)
    # Of equal scores in copies of an image there is more than one order.
    rows[..., 5] += torch.arange(rows[..., 5].numel()).view_as(rows[..., 5]) * 1e-5
    drawn = torch.arange(len(times)).repeat_interleave(torch.tensor(times))
    matched = {"map50": matched_boxes(rows, targets, IOU_THRESHOLDS[:1])}
    for metric, expected in scores(rows[drawn], targets[drawn]).items():
        of_metric = matched.get(metric) or matched_boxes(rows, targets, IOU_THRESHOLDS)
        # Beside another draw, which must not change it.
        found = drawn_scores(metric, of_metric, np.array([times, np.ones(len(times))], dtype=np.float64))
        assert found[0] == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("metric", ["map", "map50", "mar"])
def test_an_interval_holds_the_score_and_is_narrower_for_more_images(metric):
    few, many = scene(3, 30, 3), scene(3, 300, 3)
    widths = []
    for rows, targets in (few, many):
        low, high = TASKS["detection"].interval(metric, rows, targets)
        assert low < scores(rows, targets)[metric] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert TASKS["detection"].interval(metric, *few) == TASKS["detection"].interval(metric, *few)
