import copy
import functools

import pytest
import timm
import torch
from timm.layers import get_notrace_modules
from torch import nn

from strategies import ConfigError, Strategy, check_applied, freeze, make_optimizer, make_plan, split_blocks
from strategies.model import add_lora, merged_state_dict
from strategies.model.lora import lora_params

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}
#: Models as small as they come, each with a kind of layer or of reading its weights that the others lack.
MODELS = {
    "test_vit": {"img_size": 32},
    "test_resnet": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2, 2, 2)},
    "tf_efficientnet_lite0": {},
    "beit_base_patch16_224": SMALL,
    "swinv2_tiny_window8_256": {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (1, 1, 1, 1),
    },
    "resnet10t": {"output_stride": 8},
}


def make_model(name):
    model = copy.deepcopy(first_made(name))
    torch.manual_seed(0)
    return model


@functools.cache
def first_made(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **MODELS[name]).eval()
    for param in model.parameters():
        if param.ndim == 1:  # fresh norms and scales are often zero and would hide the branch behind them
            nn.init.uniform_(param, 0.5, 1.5)
    nn.init.normal_(model.get_classifier().weight)
    return model


def body_modules(model):
    return [name for block in split_blocks(model).body for name in block.modules]


def with_lora(name, **how):
    model = make_model(name)
    add_lora(model, body_modules(model), **{"rank": 3, "alpha": 6.0, **how})
    return model


def updates_drawn(model, std=0.2):
    """The model with updates that change what it puts out."""
    generator = torch.Generator().manual_seed(7)
    params = dict(model.named_parameters())
    for name in sorted(lora_params(model)):
        if ".lora_B." in name:
            params[name].data.normal_(0, std, generator=generator)
    return model


def images(n=4):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def learn(model):
    nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
    return dict(model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_updates_begin_without_an_effect(name):
    assert torch.equal(with_lora(name)(images()), make_model(name)(images()))


@pytest.mark.parametrize("name", MODELS)
def test_the_merged_weights_are_the_plain_model_s_and_put_out_the_same(name):
    model, plain = updates_drawn(with_lora(name)), make_model(name)
    before = copy.deepcopy(model.state_dict())
    merged, found, start = merged_state_dict(model), model(images()), plain(images())
    wanted = plain.state_dict()
    assert list(merged) == list(wanted)
    assert all(merged[key].shape == wanted[key].shape and merged[key].dtype == wanted[key].dtype for key in merged)
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(images()), found, rtol=1e-4, atol=1e-4)
    assert (found - start).abs().max() > 0.01
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", MODELS)
def test_every_update_is_learned_through_every_way_the_model_reads_its_weights(name):
    model = updates_drawn(with_lora(name))
    params = learn(model)
    without = [name for name in lora_params(model) if params[name].grad is None or not params[name].grad.any()]
    assert without == []


@pytest.mark.parametrize("name", MODELS)
def test_blocks_stay_the_same_with_their_updates_and_so_does_the_head(name):
    plain, model = split_blocks(make_model(name)), with_lora(name)
    blocks = split_blocks(model)
    assert blocks.head == plain.head
    assert len(blocks) == len(plain)
    for old, new in zip(plain.body, blocks.body, strict=True):
        kept = {name.replace(".base_layer.", ".") for name in new.params if name not in lora_params(model)}
        assert kept == set(old.params)
        owners = {name.partition(".lora_")[0] for name in new.params if name in lora_params(model)}
        assert owners <= set(old.modules)
        assert set(old.modules) <= {name.partition(".lora_")[0].removesuffix(".base_layer") for name in new.modules}
    assert lora_params(model) <= {name for block in blocks.body for name in block.params}


@pytest.mark.parametrize("name", MODELS)
def test_linear_layers_and_ungrouped_convolutions_are_adapted_and_nothing_else(name):
    plain, model = dict(make_model(name).named_modules()), with_lora(name)
    adapted = {name.partition(".lora_")[0] for name in lora_params(model)}
    head = {name.rpartition(".")[0] for name in split_blocks(model).head.params}
    wanted = {
        name
        for name, module in plain.items()
        if isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1 and name not in head
    }
    assert adapted == wanted != set()


def test_an_update_is_the_papers_product_written_out():
    model = updates_drawn(with_lora("test_vit", rank=2, alpha=5.0))
    params, name = dict(model.named_parameters()), "blocks.1.attn.qkv"
    down, up = params[f"{name}.lora_A.default.weight"], params[f"{name}.lora_B.default.weight"]
    assert (down.shape, up.shape) == ((2, 64), (192, 2))
    wanted = make_model("test_vit").state_dict()[f"{name}.weight"] + 5.0 / 2 * up @ down
    torch.testing.assert_close(merged_state_dict(model)[f"{name}.weight"], wanted.detach())


def test_only_the_named_modules_are_adapted_though_others_end_in_the_same_name():
    model = timm.create_model("resnet10t", num_classes=3)
    add_lora(model, ["layer1.0.conv1"], rank=1, alpha=1.0)
    assert {name.partition(".lora_")[0] for name in lora_params(model)} == {"layer1.0.conv1"}
    model = timm.create_model("resnet18", num_classes=3)
    add_lora(model, ["conv1"], rank=1, alpha=1.0)
    assert {name.partition(".lora_")[0] for name in lora_params(model)} == {"conv1"}


def test_the_classifier_is_never_adapted():
    model = make_model("test_vit")
    add_lora(model, ["blocks.0.mlp.fc1", "head"], rank=1, alpha=1.0)
    assert not any(name.startswith("head.") for name in lora_params(model))
    assert model.get_classifier() is model.head


def test_convolutions_with_weights_of_their_own_making_are_passed_over():
    model = timm.create_model("test_nfnet", num_classes=3)
    add_lora(model, body_modules(model), rank=2, alpha=2.0)
    plain = dict(timm.create_model("test_nfnet", num_classes=3).named_modules())
    assert {type(plain[name.partition(".lora_")[0]]) for name in lora_params(model)} == {nn.Conv2d}


def test_the_seed_fixes_the_updates():
    drawn = []
    for seed in (1, 1, 2):
        model = make_model("test_resnet")
        torch.manual_seed(seed)
        add_lora(model, reversed(body_modules(model)), rank=2, alpha=2.0)
        drawn.append(model.state_dict())
    key = "layer2.0.conv1.lora_A.default.weight"
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not torch.equal(drawn[0][key], drawn[2][key])


def test_parameters_that_were_there_stay_the_same_objects_with_the_same_requires_grad():
    model = make_model("test_resnet")
    for index, param in enumerate(model.parameters()):
        param.requires_grad_(index % 2 == 0)
    before = {id(param): param.requires_grad for param in model.parameters()}
    add_lora(model, body_modules(model), rank=2, alpha=2.0)
    after = {name: param for name, param in model.named_parameters() if name not in lora_params(model)}
    assert {id(param): param.requires_grad for param in after.values()} == before
    params = dict(model.named_parameters())
    assert all(params[name].requires_grad for name in lora_params(model))


@pytest.mark.parametrize("training", [True, False])
def test_new_modules_are_in_the_mode_of_their_layer(training):
    model = make_model("test_vit").train(training)
    add_lora(model, body_modules(model), rank=2, alpha=2.0, dropout=0.5)
    assert {module.training for module in model.modules()} == {training}


def test_dropout_is_of_the_update_and_of_training_alone():
    model = make_model("test_vit")
    add_lora(model, ["blocks.2.mlp.fc1"], rank=2, alpha=2.0, dropout=0.9)
    assert torch.equal(model.train()(images()), make_model("test_vit").train()(images()))
    updates_drawn(model)
    assert not torch.equal(model(images()), model(images()))
    plain = make_model("test_vit")
    plain.load_state_dict(merged_state_dict(model))
    torch.testing.assert_close(model.eval()(images()), plain(images()), rtol=1e-4, atol=1e-4)


def test_weights_of_half_precision_keep_it_when_merged():
    model = make_model("test_vit").bfloat16()
    add_lora(model, body_modules(model), rank=2, alpha=2.0)
    assert {tensor.dtype for tensor in merged_state_dict(updates_drawn(model)).values()} == {torch.bfloat16}


def test_a_model_without_updates_is_merged_as_it_is():
    model = make_model("test_resnet")
    merged = merged_state_dict(model)
    assert list(merged) == list(model.state_dict())
    assert all(tensor.data_ptr() == model.state_dict()[key].data_ptr() for key, tensor in merged.items())


def test_a_plan_freezes_what_is_below_the_trained_blocks_and_trains_updates_above():
    model = make_model("test_vit")
    trained = [name for block in split_blocks(model).body[-2:] for name in block.modules]
    add_lora(model, trained, rank=2, alpha=2.0)
    strategy = Strategy(depth=2)
    plan = make_plan(model, strategy)
    freeze(model, plan)
    optimizer = make_optimizer(model, plan, strategy)
    for group in optimizer.param_groups:
        group["lr"] = strategy.lr * group["lr_scale"]
    check_applied(model, plan, optimizer)
    assert lora_params(model) <= plan.trainable
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # A gets its first gradient once B is no longer zero
        learn(model)
        optimizer.step()
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert lora_params(model) <= moved <= plan.trainable


def test_adapted_layers_stay_leaves_of_traced_graphs():
    model = updates_drawn(with_lora("test_resnet"))

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, tuple(get_notrace_modules())) or super().is_leaf_module(module, name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    assert torch.equal(traced(images()), model(images()))


def test_a_copy_and_a_reloaded_state_are_the_same_model():
    model = updates_drawn(with_lora("beit_base_patch16_224"))
    other = with_lora("beit_base_patch16_224")
    other.load_state_dict(model.state_dict())
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))
    assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rank": 0}, "rank: 0"),
        ({"alpha": 0.0}, "alpha: 0.0"),
        ({"alpha": float("nan")}, "alpha: nan"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"dropout": -0.1}, "dropout: -0.1"),
        ({"modules": ["blocks.0.mlp.fc3"]}, "fc3.* is no module of VisionTransformer; did you mean 'blocks.0.mlp.fc"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(how, message):
    model = make_model("test_vit")
    with pytest.raises(ConfigError, match=message):
        add_lora(model, **{"modules": ["blocks.0.mlp.fc1"], "rank": 2, "alpha": 2.0, **how})
    assert list(model.state_dict()) == list(make_model("test_vit").state_dict())


def test_no_modules_are_nothing_to_do_and_twice_is_refused():
    model = make_model("test_vit")
    add_lora(model, [], rank=2, alpha=2.0)
    assert lora_params(model) == frozenset()
    add_lora(model, ["blocks.0.mlp.fc1"], rank=2, alpha=2.0)
    with pytest.raises(ConfigError, match="has low-rank updates already"):
        add_lora(model, ["blocks.1.mlp.fc1"], rank=2, alpha=2.0)
