"""Cutting classifiers: prefix and suffix together are the model, at every block, in both modes."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from strategies import ConfigError, Strategy, freeze, make_plan, set_train_mode, split_blocks
from trainers import create_classifier
from trainers.reuse import BlockGraph, Cut, CutError, cut_at, deepen, trace_blocks
from trainers.reuse.cut import check_cut
from trainers.reuse.rows import RowLayout, describe, pack, same, unpack

CLASSES = 5

# Made narrow or short: whether a model is cut exactly depends on the kinds of its blocks and not on how many there are.
SMALL_VIT = {"embed_dim": 64, "num_heads": 2, "depth": 4}
NARROW = {
    "beit_base_patch16_224": SMALL_VIT,
    "cait_xxs24_224": {"depth": 4},
    "coat_lite_tiny": {"serial_depths": (1, 1, 1, 1)},
    "coatnet_nano_rw_224": {"depths": (1, 1, 1, 1)},
    "crossvit_tiny_240": {"depth": ((1, 1, 0), (1, 1, 0))},
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 192)},
    "deit3_small_patch16_224": SMALL_VIT,
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "efficientformer_l1": {"depths": (1, 1, 1, 2)},
    "fastvit_t8": {"layers": (1, 1, 1, 1)},
    "hiera_tiny_224": {"stages": (1, 1, 2, 1)},
    "levit_128s": {"depth": (1, 1, 1)},
    "maxvit_pico_rw_256": {"depths": (1, 1, 1, 1)},
    # Every second block of a stage shifts its windows.
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 2, 1), "embed_dim": 48},
    "swinv2_tiny_window8_256": {"depths": (2, 1, 2, 1), "embed_dim": 48},
    "vgg11": {"mlp_ratio": 0.05},
    "vgg11_bn": {"mlp_ratio": 0.05},
    "vit_small_patch14_dinov2": SMALL_VIT,
    "xcit_nano_12_p16_224": {"depth": 3},
}

# Model, pixels and whether it has drop path.
SMALL = [
    ("test_resnet", 64, True),
    ("test_efficientnet", 64, True),
    ("test_convnext", 64, True),
    ("test_nfnet", 64, True),
    ("test_vit", 160, True),
    ("eva02_tiny_patch14_224", 28, True),
    ("mobilenetv3_small_050", 32, True),
    ("swin_tiny_patch4_window7_224", 56, True),
]
FAMILIES = [
    ("beit_base_patch16_224", 32, True),
    ("cait_xxs24_224", 64, True),
    ("coat_lite_tiny", 64, True),
    ("coatnet_nano_rw_224", 64, True),
    ("convnextv2_atto", 64, True),
    ("crossvit_tiny_240", 240, True),
    ("deit3_small_patch16_224", 32, True),
    ("deit_tiny_distilled_patch16_224", 32, True),
    ("densenet121", 64, False),
    ("edgenext_xx_small", 64, True),
    ("efficientformer_l1", 224, True),
    ("efficientnet_lite0", 64, True),
    ("davit_tiny", 64, True),
    ("fastvit_t8", 64, True),
    ("hiera_tiny_224", 64, True),
    ("hrnet_w18_small", 64, False),
    ("inception_v3", 96, False),
    ("levit_128s", 224, True),
    ("mambaout_femto", 64, True),
    ("maxvit_pico_rw_256", 64, True),
    ("mixer_s32_224", 64, True),
    ("pvt_v2_b0", 64, True),
    ("regnety_002", 64, True),
    ("repvgg_a0", 64, True),
    ("resnet18d", 64, True),
    ("swinv2_tiny_window8_256", 64, True),
    ("vgg11_bn", 32, False),
    ("vit_small_patch14_dinov2", 28, True),
    ("xcit_nano_12_p16_224", 64, True),
]


def classifier(name: str, size: int, drop_path: bool = False, **how) -> nn.Module:
    torch.manual_seed(0)
    how |= NARROW.get(name, {}) | ({"drop_path_rate": 0.3} if drop_path else {})
    model = create_classifier(name, CLASSES, size, **how).to(memory_format=torch.channels_last)
    # Statistics as of training: at 0 and 1, eval mode hides what is wrong with them.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def traced(name: str, size: int, **how) -> tuple[BlockGraph, nn.Module]:
    model = classifier(name, size, **how)
    return trace_blocks(model, (3, size, size)), model


def batch(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)


def some_blocks(count: int) -> list[int]:
    return sorted({1, (count + 1) // 2, count})


def step(model: nn.Module, k: int, images: torch.Tensor, cut: Cut | None) -> dict[str, torch.Tensor]:
    """All that one training step with ``k`` frozen blocks gives: output, gradients and buffers."""
    plan = make_plan(model, Strategy(depth=len(split_blocks(model)) - k))
    freeze(model, plan)
    set_train_mode(model, plan)
    torch.manual_seed(1)
    outputs = model(images.clone()) if cut is None else cut.suffix(model, cut.prefix(model, images.clone()))
    outputs = outputs if isinstance(outputs, torch.Tensor) else torch.stack(outputs)
    outputs.square().mean().backward()
    found = {f"gradient of {name}": param.grad for name, param in model.named_parameters() if param.grad is not None}
    found |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    return found | {"output": outputs.detach(), "random state": torch.get_rng_state()}


def assert_cut_is_exact(name: str, size: int, drop_path: bool, every_block: bool) -> None:
    model = classifier(name, size, drop_path)
    graph = trace_blocks(model, (3, size, size))
    for k in range(1, graph.num_blocks + 1) if every_block else some_blocks(graph.num_blocks):
        cut = cut_at(graph, model, k)
        check_cut(model, cut, batch(2, size))
        whole, parts = (step(deepcopy(model), k, batch(2, size), taken) for taken in (None, cut))
        assert whole.keys() == parts.keys()
        assert [key for key, value in whole.items() if not torch.equal(value, parts[key])] == []


@pytest.mark.parametrize(("name", "size", "drop_path"), SMALL)
def test_at_every_block_both_parts_are_the_whole_model_bit_for_bit(name, size, drop_path):
    assert_cut_is_exact(name, size, drop_path, every_block=name.startswith("test_"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "drop_path"), FAMILIES)
def test_models_of_all_families_are_cut_exactly(name, size, drop_path):
    assert_cut_is_exact(name, size, drop_path, every_block=False)


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 64), ("test_convnext", 64), ("test_vit", 160), ("mobilenetv3_small_050", 32)]
)
def test_with_all_blocks_frozen_only_the_classifiers_input_is_stored(name, size):
    model = classifier(name, size)
    graph = trace_blocks(model, (3, size, size))
    cut = cut_at(graph, model, graph.num_blocks)
    seen = []
    model.get_classifier().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rows = cut.prefix(model, batch(2, size))
    model.eval()(batch(2, size))
    assert [layout.shape for layout in cut.rows] == [seen[0].shape[1:]]
    assert torch.equal(rows[0], seen[0])
    assert cut.row_bytes == 4 * model.get_classifier().in_features


def test_pooling_between_blocks_is_done_before_storing():
    model = classifier("vgg11", 32)
    graph = trace_blocks(model, (3, 32, 32))
    # Behind the first convolution come an activation and a pooling that halves the image.
    assert cut_at(graph, model, 1).rows[0].shape == (16, 16, 64)


def test_any_number_of_images_may_be_in_a_batch():
    model = classifier("test_vit", 160)
    graph = trace_blocks(model, (3, 160, 160))
    for k in range(1, graph.num_blocks + 1):
        cut = cut_at(graph, model, k)
        for count in (1, 2, 7):
            check_cut(model, cut, batch(count, 160))
            assert all(len(rows) == count for rows in cut.prefix(model, batch(count, 160)))


def test_what_is_frozen_is_in_eval_mode_whatever_mode_the_model_is_in():
    model = classifier("test_efficientnet", 64, drop_path=True)
    graph = trace_blocks(model, (3, 64, 64))
    cut = cut_at(graph, model, 4)
    model.train()
    model.conv_stem.eval()
    modes = [module.training for module in model.modules()]
    before = deepcopy(model.state_dict())
    once, again = (cut.prefix(model, batch(4, 64)) for _ in range(2))
    assert torch.equal(once[0], again[0])
    assert not once[0].requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tracing_leaves_no_trace():
    model = classifier("test_vit", 160, drop_path=True)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    names = set(vars(model))
    cut_at(trace_blocks(model, (3, 160, 160)), model, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert set(vars(model)) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cut_serves_every_copy_of_the_model_and_follows_what_is_done_to_it():
    model = classifier("test_resnet", 64)
    graph = trace_blocks(model, (3, 64, 64))
    cut = cut_at(graph, model, 3)
    copy = deepcopy(model)
    copy.reset_classifier(3)
    with torch.no_grad():
        for param in copy.parameters():
            param.mul_(1.1)
    calls = []
    copy.layer4.register_forward_hook(lambda *given: calls.append("layer4"))
    copy.double()
    images = batch(2, 64).double()
    outputs = cut.suffix(copy.eval(), cut.prefix(copy, images))
    assert outputs.shape == (2, 3)
    assert calls == ["layer4"]
    assert torch.equal(outputs, copy(images))


def test_a_suffix_is_compiled_once_for_all_copies_of_a_model():
    graph, model = traced("test_vit", 160)
    cut = cut_at(graph, model, 3)
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    suffix = torch.compile(cut.suffix, backend=backend, fullgraph=True)
    for seed in range(3):
        copy = deepcopy(model)
        torch.manual_seed(seed)
        copy.reset_classifier(CLASSES)
        rows = cut.prefix(copy, batch(2, 160))
        assert torch.equal(suffix(copy.eval(), rows), copy(batch(2, 160)))
    assert len(compiled) == 1


def test_a_prefix_names_the_weights_that_it_depends_on():
    model = classifier("test_vit", 160)
    graph = trace_blocks(model, (3, 160, 160))
    cut = cut_at(graph, model, 3)
    frozen = {name for block in split_blocks(model).body[:3] for name in block.params}
    assert set(cut.state_names) == frozen
    resnet = classifier("test_resnet", 64)
    names = cut_at(trace_blocks(resnet, (3, 64, 64)), resnet, 1).state_names
    assert {"conv1.0.weight", "bn1.running_var"} <= set(names)
    assert not any(name.startswith(("layer", "fc")) for name in names)


@pytest.mark.parametrize(("name", "size"), [("test_convnext", 64), ("test_vit", 160), ("densenet121", 32)])
def test_deeper_rows_can_be_computed_from_shallower_ones(name, size):
    model = classifier(name, size)
    graph = trace_blocks(model, (3, size, size))
    ks = some_blocks(graph.num_blocks)
    cuts = [cut_at(graph, model, k) for k in ks]
    model.train()
    for shallow, deep in [*pairwise(cuts), (cuts[0], cuts[-1])]:
        function = deepen(graph, model, shallow, deep)
        assert function is not None
        built = function(model, shallow.prefix(model, batch(3, size)))
        direct = deep.prefix(model, batch(3, size))
        assert [torch.equal(a, b) for a, b in zip(built, direct, strict=True)] == [True] * len(deep.rows)


def test_rows_keep_the_order_in_memory():
    model = classifier("test_resnet", 64)
    graph = trace_blocks(model, (3, 64, 64))
    cut = cut_at(graph, model, 2)
    (layout,) = cut.rows
    (rows,) = cut.prefix(model, batch(2, 64))
    tensor = layout.unpack(rows)
    assert rows.is_contiguous()
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert tensor.data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_dropout_in_front_of_the_head_stays_behind_the_cut_at_any_rate(rate):
    model = classifier("test_vit", 160, drop_rate=rate)
    graph = trace_blocks(model, (3, 160, 160))
    cut = cut_at(graph, model, graph.num_blocks)
    assert cut.crossing == cut_at(*traced("test_vit", 160), graph.num_blocks).crossing
    whole, parts = (step(deepcopy(model), graph.num_blocks, batch(4, 160), taken) for taken in (None, cut))
    assert torch.equal(whole["output"], parts["output"])
    check_cut(model, cut, batch(4, 160))


def test_a_functional_dropout_in_the_forward_pass_is_off_in_eval_mode_only():
    graph, model = traced("test_efficientnet", 64, drop_rate=0.5)
    cut = cut_at(graph, model, graph.num_blocks)
    rows = cut.prefix(model, batch(4, 64))
    model.train()
    assert not torch.equal(cut.suffix(model, rows), cut.suffix(model, rows))
    model.eval()
    assert torch.equal(cut.suffix(model, rows), model(batch(4, 64)))


def test_what_is_behind_something_random_stays_behind_the_cut():
    graph, model = traced("test_vit", 160, pos_drop_rate=0.1)
    cut = cut_at(graph, model, 3)
    assert not any(name.startswith("blocks") for name in cut.state_names)
    whole, parts = (step(deepcopy(model), 3, batch(4, 160), taken) for taken in (None, cut))
    assert torch.equal(whole["output"], parts["output"])
    check_cut(model, cut, batch(4, 160))


def test_where_something_random_comes_first_nothing_is_cut():
    model = classifier("test_resnet", 64)
    plain = model.forward_features
    model.forward_features = lambda images: plain(functional.dropout(images, 0.1, model.training))
    graph = trace_blocks(model, (3, 64, 64))
    with pytest.raises(CutError, match=r"ResNet cannot be cut in front of block 3: .* random"):
        cut_at(graph, model, 3)


@pytest.mark.parametrize("k", [-1, 0, 6])
def test_a_cut_needs_a_frozen_block(k):
    graph, model = traced("test_resnet", 64)
    with pytest.raises(CutError, match=f"in front of block {k} of 5"):
        cut_at(graph, model, k)


def test_a_model_whose_forward_depends_on_its_images_is_refused():
    model = classifier("test_resnet", 64)
    plain = model.forward
    model.forward = lambda images: plain(images) if images.sum() > 0 else plain(-images)
    with pytest.raises(CutError, match=r"ResNet cannot be traced by torch\.fx: TraceError"):
        trace_blocks(model, (3, 64, 64))


def test_a_model_without_known_blocks_is_refused():
    with pytest.raises(ConfigError, match="MetaFormer: no group_matcher"):
        trace_blocks(classifier("poolformer_s12", 64), (3, 64, 64))


def test_a_model_that_mixes_images_is_refused():
    model = classifier("test_resnet", 64)
    plain = model.forward_features
    model.forward_features = lambda images: plain(images - images.flip(0))
    graph = trace_blocks(model, (3, 64, 64))
    with pytest.raises(CutError, match="which others are in the batch"):
        cut_at(graph, model, 2)


def test_a_difference_from_the_whole_model_is_found():
    graph, model = traced("test_resnet", 64)
    cut = cut_at(graph, model, 2)
    check_cut(model, cut, batch(2, 64))
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(CutError, match="cut in front of block 2 gives other outputs than whole, by 1"):
        check_cut(model, cut, batch(2, 64))


def test_under_autocast_rows_have_its_type():
    model = classifier("test_vit", 160)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = trace_blocks(model, (3, 160, 160))
        cut = cut_at(graph, model, 1)
        assert cut.rows[0].dtype == torch.bfloat16
        check_cut(model, cut, batch(3, 160))


@pytest.mark.parametrize(
    "make",
    [
        lambda images: images,
        lambda images: images.transpose(0, 1),
        lambda images: images.contiguous(memory_format=torch.channels_last),
        lambda images: images.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1),
        lambda images: [images, {"size": len(images), "shape": images.shape, "text": "a"}],
        lambda images: (images.bool(), images.mean((1, 2, 3)), None, 3 * len(images), torch.ones(4)),
    ],
)
def test_values_of_any_kind_are_found_again_in_their_rows(make):
    images = torch.randn(5, 4, 6, 2)
    description = describe(make(images[:3]), make(images[3:] + 1), (3, 2))
    value = make(images)
    rows = tuple(pack(description, value))
    assert all(len(part) == 5 for part in rows)
    for place in range(5):
        alone = tuple(pack(description, make(images[place : place + 1])))
        assert all(torch.equal(part[place : place + 1], one) for part, one in zip(rows, alone, strict=True))
    assert same(unpack(description, rows), value)


@pytest.mark.parametrize("make", [torch.sum, lambda images: images @ images.T, lambda images: images.T @ images])
def test_values_without_a_part_for_each_image_are_refused(make):
    one, other = torch.randn(3, 4), torch.randn(2, 4)
    with pytest.raises(CutError, match="no dimension of images"):
        describe(make(one), make(other), (3, 2))


def test_a_row_knows_its_size():
    assert RowLayout((4, 2), torch.bfloat16, 0, 1, (0, 1, 2)).bytes == 16
