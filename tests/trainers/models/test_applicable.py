import pytest
import timm

from strategies import Strategy, parse_space, without
from trainers import ModelSource, Weights, unusable_fields

RANDOM = Weights("none", "random", None)


def reasons(space, name="test_resnet", weights=RANDOM, task="classification", has_teacher=False, image_size=32):
    source = ModelSource(name, weights, 2, image_size)
    return unusable_fields(parse_space(space), source, task, has_teacher)


def test_what_a_space_leaves_at_its_default_needs_no_reason():
    assert reasons({}) == {}
    assert reasons({"co_tuning": 0.0, "distill_weight": 0.0, "image_scale": 1.0}) == {}


@pytest.mark.parametrize(
    ("space", "how", "reason"),
    [
        ({"distill_weight": 0.5}, {}, "there is no teacher"),
        ({"co_tuning": {"choices": [0, 1]}}, {}, "the pretrained weights bring no classifier of their own"),
        ({"co_tuning": 1.0}, {"task": "multilabel"}, "task multilabel has no single class"),
        ({"sampling": "balanced"}, {"task": "regression"}, "task regression has no classes"),
        ({"batch_norm": {"choices": ["train", "frozen"]}}, {"name": "test_vit"}, "test_vit has no BatchNorm"),
        ({"stochastic_norm": 0.5}, {"name": "test_convnext"}, "test_convnext has no BatchNorm"),
        ({"drop_path": 0.1}, {"name": "densenet121"}, "densenet121 has no residual branches to leave out"),
        ({"grow_from": 0.5}, {"name": "test_vit"}, "test_vit cannot take images of 16 px"),
        ({"image_scale": {"low": 0.1, "high": 1.0}}, {"name": "test_vit"}, "test_vit cannot take images of 16 px"),
    ],
)
def test_what_cannot_be_used_has_its_reason(space, how, reason):
    assert reasons(space, **how) == dict.fromkeys(space, reason)


def test_what_can_be_used_has_none():
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    space = {"co_tuning": 1.0, "distill_weight": 0.5, "batch_norm": "frozen", "drop_path": 0.1, "grow_from": 0.5}
    assert reasons(space, weights=Weights("file:x", "0" * 16, state), has_teacher=True) == {}


def test_the_classifier_that_weights_bring_is_read():
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    weight, bias = ModelSource("test_resnet", Weights("file:x", "0" * 16, state), 2, 32).pretrained_classifier()
    assert weight.shape == (7, state["fc.weight"].shape[1])
    assert bias.shape == (7,)
    del state["fc.weight"], state["fc.bias"]
    assert ModelSource("test_resnet", Weights("file:x", "0" * 16, state), 2, 32).pretrained_classifier() is None


def test_a_field_is_left_out_with_what_depends_on_it():
    space = parse_space(
        {
            "optimizer": {"choices": ["sgd", "adamw"]},
            "drop_path": {"low": 0.0, "high": 0.3},
            "dropout": {"low": 0.0, "high": 0.3, "when": {"drop_path": {"low": 0.1}}},
            "clip_grad": {"value": 1.0, "when": {"drop_path": {"high": 0.1}, "optimizer": "sgd"}},
        }
    )
    left = without(space, ["drop_path"])
    assert left.keys() == {"optimizer", "clip_grad"}
    assert [when.name for when in left["clip_grad"].when] == ["optimizer"]
    assert Strategy().drop_path == 0.0
