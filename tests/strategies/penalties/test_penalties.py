import copy
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strategies import ConfigError, Strategy, TrialError, freeze, make_optimizer, make_plan, set_train_mode
from strategies.penalties import learn_relationship
from strategies.penalties.penalties import Delta, FeatureMaps, Features, bss, co_tuning, l2_sp, map_modules, start_of

FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_mambaout"]


def make_model(name, **how):
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    return timm.create_model(name, num_classes=3, **size, **how)


def body_of(model):
    """Names of all parameters but the head's."""
    head = {id(p) for p in model.get_classifier().parameters()}
    return [name for name, param in model.named_parameters() if id(param) not in head]


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# L2-SP


def test_l2_sp_is_half_the_squared_distance_of_the_named_parameters():
    model = make_model("test_resnet")
    names = body_of(model)
    start = start_of(model, names)
    with torch.no_grad():
        for seed, param in enumerate(model.parameters()):
            param.add_(randn(*param.shape, seed=seed))
    expected = 0.0
    for name, param in model.named_parameters():
        if name in names:
            expected += 0.5 * ((param.detach().double().numpy() - start[name].double().numpy()) ** 2).sum()
    assert l2_sp(dict(model.named_parameters()), start).item() == pytest.approx(expected, rel=1e-5)


def test_l2_sp_pulls_each_parameter_back_by_its_distance():
    model = make_model("test_vit")
    names = body_of(model)[3:]
    start = start_of(model, names)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(randn(*param.shape))
    l2_sp(dict(model.named_parameters()), start).backward()
    for name, param in model.named_parameters():
        if name in start:
            torch.testing.assert_close(param.grad, param.detach() - start[name])
        else:
            assert param.grad is None


def test_the_start_stays_where_it_was_and_has_no_gradient():
    model = make_model("test_resnet")
    start = start_of(model, body_of(model))
    kept = {name: tensor.clone() for name, tensor in start.items()}
    assert l2_sp(dict(model.named_parameters()), start).item() == 0
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1)
    assert all(torch.equal(start[name], kept[name]) and not start[name].requires_grad for name in start)
    count = sum(tensor.numel() for tensor in start.values())
    assert l2_sp(dict(model.named_parameters()), start).item() == pytest.approx(count / 2, rel=1e-5)


def test_l2_sp_of_nothing_is_zero():
    model = make_model("test_resnet")
    assert l2_sp(dict(model.named_parameters()), start_of(model, [])).item() == 0


def test_a_strong_l2_sp_keeps_a_trained_model_nearer_to_its_start():
    def distance(weight):
        model = make_model("test_resnet")
        strategy = Strategy(optimizer="sgd", lr=0.05, weight_decay=0.0)
        plan = make_plan(model, strategy)
        freeze(model, plan)
        optimizer = make_optimizer(model, plan, strategy)
        start = start_of(model, plan.trainable & set(body_of(model)))
        params = dict(model.named_parameters())
        for _ in range(8):
            set_train_mode(model, plan)
            loss = nn.functional.cross_entropy(model(randn(6, 3, 32, 32)), torch.tensor([0, 1, 2, 0, 1, 2]))
            optimizer.zero_grad()
            (loss + weight * l2_sp(params, start)).backward()
            optimizer.step()
        return l2_sp(params, start).item()

    assert distance(10.0) < 0.5 * distance(0.0)


# DELTA


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]),
        ("densenet121", [f"features.denseblock{k}" for k in (1, 2, 3, 4)]),
        ("convnext_atto", ["stages.0.blocks.1", "stages.1.blocks.1", "stages.2.blocks.5", "stages.3.blocks.1"]),
        ("tf_efficientnet_lite0", [f"blocks.{k}" for k in range(6)]),
        ("test_mambaout", ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.5", "blocks.8", "blocks.10"]),
        ("test_vit", ["blocks.1", "blocks.2", "blocks.3", "blocks.4"]),
    ],
)
def test_the_maps_chosen_end_the_stages_or_divide_a_transformer(name, expected):
    model = timm.create_model(name)
    found = map_modules(model, dict(model.named_parameters()))
    assert len(found) >= len(expected)
    assert all(name.startswith(stage) for name, stage in zip(found, expected, strict=False))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("depth", "depth_from"), [(0, "head"), (1, "head"), (0.5, "head"), (1.0, "head"), (1, "input"), (0.5, "input")]
)
def test_the_maps_chosen_are_those_that_training_can_change(name, depth, depth_from):
    model = make_model(name)
    plan = make_plan(model, Strategy(depth=depth, depth_from=depth_from))
    freeze(model, plan)
    modules = map_modules(model, plan.trainable)
    assert bool(modules) == (depth != 0)
    maps = FeatureMaps(model, modules)
    model.eval()(randn(2, 3, 32, 32))
    assert all(tensor.requires_grad for tensor in maps.take().values())


@pytest.mark.parametrize("name", FAMILIES)
def test_delta_is_half_the_mean_square_of_each_maps_change_summed_over_maps(name):
    model = make_model(name).eval()
    start = copy.deepcopy(model)
    modules = map_modules(model, body_of(model))[-2:]
    delta = Delta(model, modules)
    images = randn(2, 3, 32, 32)
    model(images)
    assert delta.penalty(images).item() == 0
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * randn(*param.shape))
    seen = {}
    for one in (model, start):
        for module in modules:
            key = (one is model, module)
            one.get_submodule(module).register_forward_hook(lambda m, i, o, k=key: seen.update({k: o}))
        one(images)
    found = delta.penalty(images)
    expected = 0.0
    for module in modules:
        change = seen[True, module].detach().double().numpy() - seen[False, module].detach().double().numpy()
        expected += 0.5 * (change**2).mean()
    assert expected > 0
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_delta_trains_the_body_and_leaves_the_start_model_alone(name):
    model = make_model(name)
    delta = Delta(model, map_modules(model, body_of(model)))
    images = randn(4, 3, 32, 32)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * randn(*param.shape))
    before = copy.deepcopy(delta._start.state_dict())
    values = []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(8):
        model.train()(images)
        penalty = delta.penalty(images)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values[-1] < values[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in delta._start.state_dict().items())
    assert not delta._start.training
    assert not any(param.requires_grad or param.grad is not None for param in delta._start.parameters())
    assert any(param.grad is not None and param.grad.any() for param in model.parameters())


def test_delta_adds_nothing_to_what_the_model_saves():
    model = make_model("test_resnet")
    keys = list(model.state_dict())
    Delta(model, map_modules(model, body_of(model)))
    assert list(model.state_dict()) == keys


def test_delta_of_no_maps_is_zero():
    model = make_model("test_resnet")
    model(randn(2, 3, 32, 32))
    assert Delta(model, []).penalty(randn(2, 3, 32, 32)).item() == 0


def test_validation_between_two_steps_does_not_disturb_delta():
    model = make_model("test_resnet")
    delta = Delta(model, ["layer4.0"])
    model(randn(4, 3, 32, 32))
    with torch.inference_mode():
        model(randn(9, 3, 32, 32))
    assert delta.penalty(randn(4, 3, 32, 32)).item() > 0


def test_a_penalty_without_a_forward_pass_of_its_own_is_refused():
    model = make_model("test_resnet")
    delta = Delta(model, ["layer4.0"])
    model(randn(4, 3, 32, 32))
    delta.penalty(randn(4, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"'layer4.0' took no part"):
        delta.penalty(randn(4, 3, 32, 32))


def test_an_unknown_module_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match=r"'layer4.00' is no module of ResNet; did you mean 'layer4.0'"):
        Delta(make_model("test_resnet"), ["layer4.00"])


def test_a_module_that_returns_no_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = nn.Sequential(Pair())
    FeatureMaps(model, ["0"])
    with pytest.raises(ConfigError, match="module '0' returns tuple"):
        model(randn(2, 3))


# BSS


@pytest.mark.parametrize("name", [*FAMILIES, "mobilenetv3_small_050"])
def test_features_are_what_the_classifier_is_given(name):
    model = make_model(name).eval()
    features = Features(model)
    images = randn(3, 3, 32, 32)
    logits = model(images)
    taken = features.take()
    assert taken.shape == (3, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(taken), logits)
    assert taken.requires_grad


def test_features_of_a_convolution_as_classifier_are_flat():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1))
    model.get_classifier = lambda: model[1]
    features = Features(model)
    model(randn(4, 3, 5, 5))
    assert features.take().shape == (4, 3)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 8), d=st.integers(1, 8), k=st.integers(1, 10), seed=st.integers(0, 1000))
def test_bss_is_the_sum_of_squares_of_the_smallest_singular_values(n, d, k, seed):
    features = randn(n, d, seed=seed)
    values = np.sort(np.linalg.svd(features.double().numpy(), compute_uv=False))
    assert bss(features, k).item() == pytest.approx((values[:k] ** 2).sum(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
def test_the_gradient_of_bss_is_that_of_finite_differences(shape):
    features = randn(*shape).requires_grad_()
    bss(features, 2).backward()

    def value(x):
        return (np.sort(np.linalg.svd(x, compute_uv=False))[:2] ** 2).sum()

    base, expected = features.detach().double().numpy(), np.zeros(shape)
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-5
        expected[index] = (value(base + step) - value(base - step)) / 2e-5
    np.testing.assert_allclose(features.grad.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(4, 6),
        torch.ones(4, 6),
        torch.eye(5),
        torch.eye(8)[:3],
        torch.cat([torch.ones(6, 2), torch.zeros(6, 2)], 1),
    ],
    ids=["zero", "rank one", "all equal", "fewer images than features", "dead features"],
)
@pytest.mark.parametrize("k", [1, 3])
def test_gradients_are_finite_for_zero_and_repeated_singular_values(features, k):
    features = features.clone().requires_grad_()
    bss(features, k).backward()
    assert features.grad.isfinite().all()


def test_bss_of_half_precision_is_worked_out_in_single():
    features = randn(6, 4).bfloat16()
    found = bss(features)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(bss(features.float()).item())


def test_features_that_are_no_longer_finite_end_the_trial():
    with pytest.raises(TrialError, match="singular values"):
        bss(torch.full((3, 4), math.nan))


# Co-Tuning


def test_co_tuning_is_the_cross_entropy_against_the_rows_of_the_targets():
    logits, targets = randn(6, 5).requires_grad_(), torch.tensor([0, 2, 1, 1, 0, 2])
    relationship = randn(3, 5, seed=2).softmax(1)
    found = co_tuning(logits, targets, relationship)
    expected = 0.0
    for row, target in zip(logits.detach().double().numpy(), targets.tolist(), strict=True):
        log_p = row - np.log(np.exp(row).sum())
        expected -= (relationship[target].double().numpy() * log_p).sum() / 6
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - relationship[targets]) / 6)


def test_co_tuning_of_a_mixed_image_is_the_mixture_of_its_classes():
    logits, relationship = randn(2, 5), randn(3, 5, seed=2).softmax(1)
    found = co_tuning(logits, torch.tensor([[0.3, 0.7, 0], [0, 0, 1]]), relationship)
    parts = [co_tuning(logits[:1], torch.tensor([k]), relationship) for k in (0, 1)]
    expected = (0.3 * parts[0] + 0.7 * parts[1] + co_tuning(logits[1:], torch.tensor([2]), relationship)) / 2
    torch.testing.assert_close(found, expected)


def test_the_relationship_is_the_mean_probability_of_each_class():
    logits, targets = 3 * randn(20, 5), torch.arange(20) % 3
    found = learn_relationship(logits, targets, 3)
    for target in range(3):
        rows = np.exp(logits[targets == target].double().numpy())
        np.testing.assert_allclose(found[target].numpy(), (rows / rows.sum(1, keepdims=True)).mean(0), rtol=1e-4)


def test_a_class_without_images_has_the_relationship_of_all():
    logits, targets = randn(12, 5), torch.tensor([0, 2] * 6)
    found = learn_relationship(logits, targets, 4)
    torch.testing.assert_close(found[1], found[[0, 2]].mean(0))
    torch.testing.assert_close(found[3], found[1])


def test_source_classes_are_related_to_the_target_class_that_they_make_up():
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(4000, 6, generator=generator)
    source = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    found = learn_relationship(logits, source // 2, 3)
    assert [sorted(row.topk(2).indices.tolist()) for row in found] == [[0, 1], [2, 3], [4, 5]]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), classes=st.integers(1, 5), size=st.floats(0, 200), seed=st.integers(0, 100))
def test_a_relationship_is_a_distribution_for_each_class_however_few_the_images(n, classes, size, seed):
    logits = size * randn(n, 4, seed=seed)
    targets = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    found = learn_relationship(logits, targets, classes)
    assert found.shape == (classes, 4)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(classes))
