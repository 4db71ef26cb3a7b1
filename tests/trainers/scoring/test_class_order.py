"""A model's outputs by the classes of other data, for every task."""

import math

import pytest
import torch

from trainers import TASKS, InOrder, answers_for, in_order
from trainers.tasks.regions import region_rows

KNOWN = ["cat", "dog", "eel"]
# One class is gone, one is new, and the others have other places.
DATA = ["ant", "eel", "cat"]
NONE = torch.empty(0)


def test_a_class_that_the_data_lacks_stays_an_answer_where_there_is_one_answer():
    for task in ("classification", "segmentation", "detection"):
        assert answers_for(task, DATA, KNOWN, ["fox"]) == ("ant", "eel", "cat", "dog", "fox")
    for task in ("multilabel", "regression"):
        assert answers_for(task, DATA, KNOWN) == tuple(DATA)


def test_outputs_of_the_same_classes_stay_as_they_are():
    outputs = torch.randn(2, 3)
    assert in_order("classification", outputs, KNOWN, tuple(KNOWN), NONE) is outputs


def test_an_unknown_class_is_never_the_answer_and_has_a_finite_loss():
    wanted = answers_for("classification", DATA, KNOWN)
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [-60, -60, -60], [300, 0, 0]])
    found = in_order("classification", logits, KNOWN, wanted, NONE)
    assert found.argmax(1).tolist()[:3] == [2, 3, 1]
    assert (found.argmax(1) != 0).all()
    assert found.softmax(1)[:, 0] == pytest.approx([1e-6] * 5, rel=0.01)
    assert torch.allclose(found.softmax(1)[:, [2, 3, 1]], logits.softmax(1), atol=2e-6)
    # Cat, dog and eel, the first of which is the only right one.
    scores = TASKS["classification"].scores(found[:3], torch.tensor([2, 0, 0]))
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["loss"] == pytest.approx(-2 / 3 * math.log(1e-6), rel=0.01)


def test_an_unknown_label_is_never_shown():
    logits = torch.tensor([[5.0, 5.0, -5.0]])
    found = in_order("multilabel", logits, KNOWN, DATA, NONE)
    assert found.sigmoid()[0].tolist() == pytest.approx([1e-6, 1 / (1 + math.e**5), 1 / (1 + math.e**-5)], rel=1e-3)


def test_a_number_that_a_model_does_not_give_is_the_usual_one():
    found = in_order("regression", torch.tensor([[1.0, 2.0, 3.0]]), KNOWN, DATA, torch.tensor([10.0, 20.0, 30.0]))
    assert found.tolist() == [[10.0, 3.0, 1.0]]


def test_boxes_keep_their_classes_by_name():
    rows = torch.zeros(1, 4, 6)
    rows[0, :, 4] = torch.tensor([0.0, 1.0, 2.0, -1.0])
    found = in_order("detection", rows, KNOWN, answers_for("detection", DATA, KNOWN), NONE)
    assert found[0, :, 4].tolist() == [2, 3, 1, -1]
    assert rows[0, :, 4].tolist() == [0, 1, 2, -1]


def test_pixels_are_counted_by_the_classes_of_the_data():
    wanted = answers_for("segmentation", DATA, KNOWN)
    said = torch.tensor([[[0, 1], [2, 2]]])
    model = InOrder(torch.nn.Identity(), "segmentation", KNOWN, wanted)
    logits = model(9 * torch.eye(3)[said].permute(0, 3, 1, 2))
    # The pixels are cat, ant, eel and cat; the model says cat, dog, eel and eel.
    rows = region_rows(logits, torch.tensor([[[2, 0], [1, 2]]]))
    scores = TASKS["segmentation"].scores(rows, NONE)
    assert scores["pixel_accuracy"] == 0.5
    # Of ant, eel, cat and dog.
    assert scores["mean_iou"] == pytest.approx((0 + 1 / 2 + 1 / 2 + 0) / 4)
    assert math.isfinite(scores["loss"])
