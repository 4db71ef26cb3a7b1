import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainers.decoders import DETECTORS, Detector
from trainers.tasks.boxes import scores

SIDE = 64
UNUSED = [0.0, 0, 0, 0, -1]
# Squares of 12 to 40 pixels, of class 0 in red and 1 in green.
TARGETS = torch.tensor(
    [
        [[2.0, 4, 42, 44, 0], UNUSED],
        [[2, 8, 22, 28, 1], [34, 20, 46, 32, 0]],
        [[30, 12, 54, 36, 0], UNUSED],
        [[2, 16, 18, 32, 1], [34, 34, 62, 62, 0]],
    ]
)
NOTHING = torch.tensor([[UNUSED]])


def pictures(targets):
    images = torch.zeros(len(targets), 3, SIDE, SIDE)
    for image, rows in zip(images, targets.int().tolist(), strict=True):
        for left, top, right, bottom, label in rows:
            if label >= 0:
                image[label, top:bottom, left:right] = 1
    return images


class Encoder(nn.Module):
    """Maps of 16 and 32 channels at strides of 8 and 16."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 32, 2, 2), nn.ReLU())

    def forward(self, images):
        first = self.first(images)
        return [first, self.second(first)]


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder()
        self.top = Detector(kind, [16, 32], [8, 16], 2, SIDE)

    def forward(self, images):
        return self.top(self.encoder(images))


def train(model, targets, steps):
    """The loss before each step on the four images."""
    images, losses = pictures(TARGETS), []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        loss = model.top.losses(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module", params=[("faster_rcnn", 40), ("retinanet", 90), ("fcos", 40)], ids=lambda kind: kind[0])
def trained(request):
    """A model trained on the four images, its kind and its losses."""
    kind, steps = request.param
    model = Model(kind)
    return model, kind, train(model, TARGETS, steps)


def found(model, images):
    with torch.no_grad():
        return model.top.detections(model(images))


def maps(channels, strides, side, images=2):
    return [torch.randn(images, c, -(-side // s), -(-side // s)) for c, s in zip(channels, strides, strict=True)]


def test_a_detector_learns_to_find_the_squares_of_four_images(trained):
    model, _, losses = trained
    assert losses[-1] < losses[0] / 3
    assert scores(found(model, pictures(TARGETS)), TARGETS)["map50"] > 0.5


@pytest.mark.parametrize("kind", DETECTORS)
def test_unused_rows_of_targets_do_not_matter(kind):
    model = Model(kind)
    longer = torch.cat([NOTHING.expand(4, 3, 5), TARGETS, NOTHING.expand(4, 2, 5)], 1)
    losses = []
    for targets in (TARGETS, longer):
        torch.manual_seed(1)
        losses.append(model.top.losses(model(pictures(TARGETS)), targets))
    assert torch.equal(*losses)


def test_images_without_boxes_teach_that_nothing_is_there(trained):
    model = copy.deepcopy(trained[0])
    before = found(model, pictures(TARGETS))[:, 0, 5]
    losses = train(model, NOTHING.expand(4, 1, 5), 15)
    assert losses[-1] < losses[0] / 2
    assert (found(model, pictures(TARGETS))[:, 0, 5] < before).all()


@pytest.mark.parametrize("kind", DETECTORS)
def test_an_image_without_boxes_beside_others_gives_finite_gradients_to_every_weight(kind):
    model = Model(kind)
    targets = torch.cat([TARGETS, NOTHING.expand(1, 2, 5)])
    model.top.losses(model(pictures(targets)), targets).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("kind", DETECTORS)
def test_losses_are_those_of_the_seed_in_training_and_evaluation(kind):
    model, losses = Model(kind), []
    for training in (True, False, True):
        model.train(training)
        torch.manual_seed(2)
        losses.append(model.top.losses(model(pictures(TARGETS)), TARGETS).item())
    assert losses[0] == losses[1] == losses[2]


def test_the_regions_that_faster_rcnn_learns_from_depend_on_the_seed():
    model, losses = Model("faster_rcnn"), set()
    for seed in range(3):
        torch.manual_seed(seed)
        losses.add(model.top.losses(model(pictures(TARGETS)), TARGETS).item())
    assert len(losses) == 3


@pytest.mark.parametrize("kind", DETECTORS)
def test_what_is_found_and_the_modes_of_modules_are_the_same_before_and_after_in_any_mode(kind):
    model, rows = Model(kind), []
    for training in (True, False):
        model.train(training)
        next(model.top.modules()).training = not training
        modes = [module.training for module in model.modules()]
        rows.append(found(model, pictures(TARGETS)))
        assert [module.training for module in model.modules()] == modes
    assert torch.equal(*rows)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(sorted(DETECTORS)),
    strides=st.sampled_from([(4, 8), (8, 16, 32), (4, 8, 16, 32), (4, 16), (14, 14, 14), (32,)]),
    side=st.sampled_from([32, 56, 64, 100, 128]),
    seed=st.integers(0, 2**32),
)
def test_found_boxes_lie_in_the_image_best_first_whatever_the_maps(kind, strides, side, seed):
    torch.manual_seed(seed)
    channels = [8 * (k + 1) for k in range(len(strides))]
    detector = Detector(kind, channels, strides, 3, side)
    with torch.no_grad():
        pyramid = detector([10 * level for level in maps(channels, strides, side)])
        rows = detector.detections(pyramid)
        targets = torch.tensor([[[1.0, 2, 7, 9, 2], [0, 0, side, side, 0]], [UNUSED, UNUSED]])
        assert detector.losses(pyramid, targets).isfinite()
    assert rows.shape == (2, 100, 6)
    assert rows.dtype == torch.float32
    used = rows[..., 4] >= 0
    assert (rows[~used] == torch.tensor([*UNUSED, 0])).all()
    boxes = rows[used]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] < boxes[:, 2:4]).all()
    assert (boxes[:, 2:4] <= side).all()
    assert set(boxes[:, 4].tolist()) <= {0.0, 1.0, 2.0}
    assert ((boxes[:, 5] > 0) & (boxes[:, 5] <= 1)).all()
    assert (rows[:, :-1, 5] >= rows[:, 1:, 5]).all()


def box_gradients(detector, pyramid, box):
    detector.zero_grad()
    detector.losses(pyramid, torch.tensor([[[*box, 0.0]]])).backward(retain_graph=True)
    return [
        weight.grad.abs().sum()
        for name, weight in detector.named_parameters()
        if name.endswith(("bbox_pred.weight", "bbox_reg.weight"))
    ]


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("side", [64, 224])
def test_objects_of_an_eighth_to_the_whole_of_the_side_have_places_to_be_learnt_at(kind, side):
    torch.manual_seed(0)
    detector = Detector(kind, [8, 8, 8], [8, 16, 32], 1, side)
    pyramid = detector(maps([8, 8, 8], [8, 16, 32], side, images=1))
    for part in (1 / 8, 1 / 4, 1 / 2, 1):
        size = part * side
        left = (side - size) * 0.4
        learnt = box_gradients(detector, pyramid, [left, left, left + size, left + size])
        assert learnt
        assert all(gradient > 0 for gradient in learnt), part


def test_the_one_place_of_a_map_is_the_middle_of_the_image():
    torch.manual_seed(0)
    detector = Detector("fcos", [8], [32], 1, 32)
    pyramid = detector(maps([8], [32], 32, images=1))
    assert box_gradients(detector, pyramid, [12.0, 12, 20, 20])[0] > 0
    assert box_gradients(detector, pyramid, [0.0, 0, 8, 8])[0] == 0


def test_half_precision_changes_neither_losses_nor_boxes_by_much(trained):
    model, rows, losses = trained[0], [], []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
            torch.manual_seed(3)
            pyramid = model(pictures(TARGETS))
            losses.append(model.top.losses(pyramid, TARGETS))
            rows.append(model.top.detections(pyramid))
    assert pyramid[0].dtype == torch.bfloat16
    assert losses[1].dtype == rows[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.1)
    best = [of_images[:, 0] for of_images in rows]
    assert torch.equal(best[0][:, 4], best[1][:, 4])
    assert (best[0][:, :4] - best[1][:, :4]).abs().max() < 2


def test_weights_carry_all_that_was_learnt(trained):
    model, kind, _ = trained
    fresh = Model(kind)
    before = found(fresh, pictures(TARGETS))
    fresh.load_state_dict(model.state_dict(), strict=True)
    after = found(fresh, pictures(TARGETS))
    assert torch.equal(after, found(model, pictures(TARGETS)))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("kind", DETECTORS)
def test_no_statistics_of_batches_are_kept(kind):
    assert not list(Model(kind).top.buffers())
