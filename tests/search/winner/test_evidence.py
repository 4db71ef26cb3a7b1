"""What is kept of the winner's answers on test images."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from search.winner import plots
from search.winner.evidence import evidence_of, picture_of
from search.winner.plots import as_png

CLASSES = ["cat", "dog", "eel"]


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, 3, generator=generator)
    return logits, logits.softmax(1).multinomial(1, generator=generator).flatten()


def test_confusion_is_that_of_scikit_learn(drawn):
    logits, targets = drawn
    found = evidence_of("classification", logits, targets, CLASSES, None)
    assert found["confusion"] == confusion_matrix(targets, logits.argmax(1)).tolist()
    assert found["images"] == 300


def test_the_worst_mistakes_are_those_of_which_the_model_is_surest(drawn):
    logits, targets = drawn
    mistakes = evidence_of("classification", logits, targets, CLASSES, 2.0)["mistakes"]
    assert len(mistakes) == 12
    probabilities = (logits / 2).double().softmax(1)
    wrong = [k for k in range(300) if probabilities[k].argmax() != targets[k]]
    expected = sorted(wrong, key=lambda k: -probabilities[k].max().item())[:12]
    assert [one["image"] for one in mistakes] == expected
    for one in mistakes:
        assert one["truth"] == CLASSES[targets[one["image"]]]
        assert one["answer"] == CLASSES[logits[one["image"]].argmax()]
        assert one["probability"] == pytest.approx(probabilities[one["image"]].max().item())


def test_reliability_counts_every_answer_once_and_follows_the_temperature(drawn):
    logits, targets = drawn
    for temperature in (None, 4.0):
        bins = evidence_of("classification", logits, targets, CLASSES, temperature)["reliability"]
        assert sum(one["count"] for one in bins) == 300
        assert all(one["from"] < one["sure"] <= one["to"] + 1e-9 for one in bins)
        right = sum(one["count"] * one["right"] for one in bins) / 300
        assert right == pytest.approx((logits.argmax(1) == targets).double().mean().item())
        sure = sum(one["count"] * one["sure"] for one in bins) / 300
        assert sure == pytest.approx((logits / (temperature or 1)).double().softmax(1).max(1).values.mean().item())


def test_of_many_classes_there_is_no_matrix():
    logits = torch.randn(20, 300)
    assert "confusion" not in evidence_of("classification", logits, torch.arange(20), list(map(str, range(300))), None)


def test_names_of_classes_are_drawn_as_they_are_whatever_they_look_like(recwarn):
    classes = ["$\\frac{$", "猫", "a"]
    evidence = {"classes": classes, "confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    figure = plots.confusion(evidence)
    assert as_png(figure).startswith(b"\x89PNG")
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]


def test_labels_are_compared_class_by_class():
    logits = torch.tensor([[9.0, -9.0, 9.0], [-9.0, -9.0, -9.0], [9.0, 9.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = evidence_of("multilabel", logits, targets, CLASSES, None)
    assert [(one["image"], one["truth"], one["answer"]) for one in found["mistakes"]] == [
        (0, "cat", "cat, eel"),
        (2, "cat, dog, eel", "cat, dog"),
    ]
    assert found["per_class"][2] == {"class": "eel", "images": 1, "found": 0, "said": 1}


def test_numbers_that_are_furthest_off_in_their_own_units_come_first():
    targets = torch.tensor([[0.0, 0.0], [1.0, 100.0], [2.0, 200.0], [3.0, 300.0]])
    outputs = targets + torch.tensor([[0.0, 10.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = evidence_of("regression", outputs, targets, ["age", "weight"], None)
    assert [one["image"] for one in found["mistakes"]][:2] == [1, 0]
    assert found["mistakes"][0]["truth"] == "age 1, weight 100"
    assert found["mistakes"][0]["answer"] == "age 1.5, weight 100"
    assert found["points"]["weight"] == {"truth": [0, 100, 200, 300], "answer": [10, 100, 200, 300]}


class _Images:
    """Images in place of a split's."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = torch.from_numpy(images)

    def batches(self, order, batch_size, device):
        yield self._images[order], order


@pytest.mark.parametrize(
    ("shape", "mode"), [((1, 8, 8), "L"), ((2, 8, 8), "L"), ((3, 400, 200), "RGB"), ((5, 8, 8), "RGB")]
)
def test_any_image_becomes_a_small_picture(shape, mode, tmp_path):
    images = np.zeros((1, *shape), np.uint8)
    images[0, 0] = 255
    (tmp_path / "one.png").write_bytes(picture_of(_Images(images), 0))
    picture = Image.open(tmp_path / "one.png")
    assert picture.mode == mode
    assert max(picture.size) <= 160
    assert np.asarray(picture).reshape(picture.size[0] * picture.size[1], -1)[0, 0] == 255
