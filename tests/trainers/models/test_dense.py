"""Models that segment and detect: the encoder has a classifier's blocks, and what stands on it is the head."""

import pytest
import timm
import torch
from torch import nn

from strategies import (
    ConfigError,
    Strategy,
    check_applied,
    freeze,
    make_optimizer,
    make_plan,
    set_train_mode,
    split_blocks,
)
from trainers import ModelSource, Weights, create_classifier
from trainers.models import dress
from trainers.models.dense import Top

FAMILIES = ("test_resnet", "test_efficientnet", "test_vit", "convnext_zepto_rms", "swin_s3_tiny_224", "regnetx_002")
NO_WEIGHTS = Weights("none", "random", None)


class Sum(nn.Module):
    """A top of one map: each as two channels, enlarged to the first one's size, added."""

    def __init__(self, channels, strides):
        super().__init__()
        self.strides = strides
        self.decoder = nn.ModuleList(nn.Conv2d(count, 2, 1) for count in channels)
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, maps):
        size = maps[0].shape[2:]
        parts = [nn.functional.interpolate(conv(m), size=size) for conv, m in zip(self.decoder, maps, strict=True)]
        return self.head(torch.stack(parts).sum(0))


def dressed(name: str, size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return dress(create_classifier(name, 10, size), size, 3, Top(Sum))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_encoder_of_a_classifier_keeps_its_blocks_and_weights_under_a_new_top(name):
    classifier = create_classifier(name, 10, 64)
    before, state = split_blocks(classifier), classifier.state_dict()
    model = dress(classifier, 64, 3, Top(Sum))
    after = split_blocks(model)
    # What lies behind the last map goes, and with it at most a block of nothing else.
    assert len(before) - 1 <= len(after) <= len(before)
    first = before.body[0].params
    assert after.body[0].params == tuple(f"encoder.{param}" for param in first)
    assert {param.partition(".")[0] for param in after.head.params} == {"top"}
    assert after.decoder == {param for param in after.head.params if param.startswith("top.decoder.")}
    for param, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, state[param])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_top_sees_the_maps_from_the_finest_to_the_coarsest(name):
    model = dressed(name).eval()
    strides = model.top.strides
    assert strides == sorted(strides)
    with torch.no_grad():
        answer = model(torch.zeros(2, 3, 64, 64))
    assert answer.shape == (2, 3, 64 // strides[0], 64 // strides[0])


def test_a_model_of_one_resolution_gives_four_maps_spread_over_its_layers():
    model = dressed("test_vit")
    assert len(model.top.decoder) == 4
    assert len(set(model.top.strides)) == 1


def test_depth_counts_the_encoders_blocks_and_the_top_is_always_trained():
    model = dressed("test_resnet")
    blocks = split_blocks(model)
    plan = make_plan(
        model, Strategy(depth=1, layer_decay=0.5, decoder_lr_scale=3.0, head_lr_scale=7.0, batch_norm="frozen")
    )
    freeze(model, plan)
    set_train_mode(model, plan)
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert {name for name in trained if name.startswith("encoder.")} <= set(blocks.body[-1].params)
    assert {name for name in trained if name.startswith("top.")} == set(blocks.head.params)
    scale = {param.name: param.lr_scale for param in plan.params}
    assert scale["top.head.weight"] == 7.0
    assert scale["top.decoder.0.weight"] == 3.0
    assert {scale[name] for name in blocks.body[-1].params} == {0.5}
    optimizer = make_optimizer(model, plan, Strategy(depth=1))
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    check_applied(model, plan, optimizer)


def test_batch_norm_of_a_new_decoder_is_trained_while_the_encoders_is_frozen():
    model = dress(create_classifier("test_resnet", 10, 64), 64, 3, Top(lambda channels, strides: Normed(channels)))
    plan = make_plan(model, Strategy(depth=1.0, batch_norm="frozen"))
    freeze(model, plan)
    set_train_mode(model, plan)
    assert model.top.decoder.training and model.top.decoder.weight.requires_grad
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)


class Normed(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.decoder = nn.BatchNorm2d(channels[-1])

    def forward(self, maps):
        return self.decoder(maps[-1])


def test_the_same_seed_draws_the_same_top_and_another_seed_another():
    source = ModelSource("test_resnet", NO_WEIGHTS, 3, 64, top=Top(Sum))
    one, same, other = (source.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["top.head.weight"], other["top.head.weight"])
    assert source.num_blocks == len(split_blocks(dressed("test_resnet")))


def test_pretrained_weights_fill_the_encoder():
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    source = ModelSource("test_resnet", Weights("file", "0" * 12, state), 3, 64, top=Top(Sum))
    built = source.build(0).encoder.state_dict()
    assert built and all(torch.equal(tensor, state[name]) for name, tensor in built.items())


def test_a_model_without_intermediate_maps_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"^model.name: Conv2d does not give the feature maps"):
        dress(nn.Conv2d(3, 3, 1), 64, 3, Top(Sum))
