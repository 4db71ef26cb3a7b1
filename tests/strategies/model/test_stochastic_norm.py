import copy

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, get_notrace_modules
from torch import nn

from strategies import Strategy, check_applied, freeze, make_optimizer, make_plan, set_train_mode
from strategies.model import StochNorm2d, StochNormAct2d, use_stochastic_norm

MODELS = ["test_resnet", "test_efficientnet"]


def make_norm(channels=5, **how):
    """A BatchNorm2d whose parameters and statistics are far from a fresh one's."""
    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm2d(channels, **how)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    return norm


def make_model(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def stochastic(module, p):
    turned = copy.deepcopy(module)
    use_stochastic_norm(turned, p)
    return turned


def images(n=6):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def state_is_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_each_channel_is_normalised_by_one_of_the_two_statistics_as_written_out():
    norm = make_norm(64)
    turned = stochastic(norm, 0.3)
    x = torch.randn(7, 64, 3, 4, generator=torch.Generator().manual_seed(2)) * 2 + 1
    torch.manual_seed(5)
    found = turned(x).detach().numpy()

    def by(mean, var):
        scale = norm.weight.detach().numpy() / np.sqrt(var + norm.eps)
        return (x.numpy() - mean[:, None, None]) * scale[:, None, None] + norm.bias.detach().numpy()[:, None, None]

    by_running = by(norm.running_mean.numpy(), norm.running_var.numpy())
    by_batch = by(x.numpy().mean((0, 2, 3)), x.numpy().var((0, 2, 3)))
    running = np.isclose(found, by_running, atol=1e-4).all((0, 2, 3))
    batch = np.isclose(found, by_batch, atol=1e-4).all((0, 2, 3))
    assert (running ^ batch).all()
    assert 0 < running.sum() < batch.sum()


def test_the_share_of_channels_with_running_statistics_is_p_and_differs_from_step_to_step():
    norm = make_norm(2000)
    turned = stochastic(norm, 0.3)
    norm.eval()
    x = torch.randn(4, 2000, 1, 2, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    by_running = norm(x)
    # Without momentum the running statistics stay, so that both steps compare with the same.
    turned.momentum = 0.0
    first, second = ((turned(x) == by_running).all(0).flatten(1).all(1) for _ in range(2))
    assert first.float().mean() == pytest.approx(0.3, abs=0.04)
    assert not torch.equal(first, second)
    assert (first & second).float().mean() == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("p", [0.0, 1e-9])
def test_probability_zero_trains_as_batch_norm_to_the_last_bit(name, p):
    model = make_model(name)
    turned = stochastic(model, p)
    for one in (model, turned):
        one.train()
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(2):
            nn.functional.cross_entropy(one(images()), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
            optimizer.step()
    assert state_is_equal(model, turned)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_drawn_where_nothing_is_left_to_chance(p, training):
    turned = stochastic(make_norm(), p).train(training)
    before = torch.get_rng_state()
    turned(torch.randn(3, 5, 2, 2, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", MODELS)
def test_probability_one_has_the_output_and_gradients_of_running_statistics(name):
    model = make_model(name)
    turned = stochastic(model, 1.0).train()
    model.eval()
    for one in (model, turned):
        nn.functional.cross_entropy(one(images()), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    for a, b in zip(model.parameters(), turned.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_updated_as_by_batch_norm(p, momentum):
    norm = make_norm(momentum=momentum)
    turned = stochastic(norm, p)
    for seed in range(3):
        x = torch.randn(4, 5, 2, 2, generator=torch.Generator().manual_seed(seed))
        norm(x), turned(x)
    assert state_is_equal(norm, turned)


@pytest.mark.parametrize("name", MODELS)
def test_in_eval_mode_it_is_batch_norm(name):
    model = make_model(name).eval()
    turned = stochastic(model, 0.7)
    assert torch.equal(model(images()), turned(images()))
    assert state_is_equal(model, turned)


@pytest.mark.parametrize("how", [{"track_running_stats": False}, {"affine": False}])
@pytest.mark.parametrize("training", [True, False])
def test_norms_without_statistics_or_parameters_are_handled(how, training):
    norm = nn.BatchNorm2d(5, **how).train(training)
    turned = stochastic(norm, 1e-9)
    x = torch.randn(4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x), turned(x))


@pytest.mark.parametrize(("name", "kind"), [("test_resnet", StochNorm2d), ("test_efficientnet", StochNormAct2d)])
def test_all_norms_of_a_model_are_turned_and_stay_the_same_objects(name, kind):
    model = make_model(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    params, keys = list(model.parameters()), list(model.state_dict())
    assert use_stochastic_norm(model, 0.5) == len(norms) > 0
    assert all(type(norm) is kind for norm in norms)
    assert [a is b for a, b in zip(model.parameters(), params, strict=True)] == [True] * len(params)
    assert list(model.state_dict()) == keys
    make_model(name).load_state_dict(model.state_dict())
    model.load_state_dict(make_model(name).state_dict())


def test_the_fused_drop_and_activation_are_kept():
    x = torch.randn(4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    active = BatchNormAct2d(5, act_layer=nn.ReLU)
    expected = stochastic(active, 1.0).eval()(x)
    assert not (expected < 0).any()
    assert torch.equal(stochastic(active, 1.0)(x), expected)
    dropped = BatchNormAct2d(5, apply_act=False, drop_layer=lambda: nn.Dropout(1.0))
    assert not stochastic(dropped, 1.0)(x).any()


def test_a_model_without_batch_norm_has_nothing_to_turn():
    assert use_stochastic_norm(timm.create_model("test_vit", img_size=32), 0.5) == 0


def test_the_same_seed_gives_the_same_step():
    model = make_model("test_resnet")
    found = []
    for seed in (1, 1, 2):
        turned = stochastic(model, 0.5).train()
        torch.manual_seed(seed)
        found.append(turned(images()))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_with_a_plan_that_freezes_part_of_the_model(name):
    strategy = Strategy(depth=2)
    model = make_model(name)
    use_stochastic_norm(model, 0.5)
    plan = make_plan(model, strategy)
    assert plan == make_plan(make_model(name), strategy)
    freeze(model, plan)
    set_train_mode(model, plan)
    optimizer = make_optimizer(model, plan, strategy)
    for group in optimizer.param_groups:
        group["lr"] = strategy.lr * group["lr_scale"]
    check_applied(model, plan, optimizer)
    before = copy.deepcopy(model.state_dict())
    model(images())
    moved = {
        key.rpartition(".")[0] for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])
    }
    asleep = plan.eval_modules(0)
    assert moved == {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and n not in asleep} != set()


@pytest.mark.parametrize("name", MODELS)
def test_it_stays_a_leaf_of_traced_graphs(name):
    model = make_model(name).eval()
    use_stochastic_norm(model, 0.5)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, tuple(get_notrace_modules())) or super().is_leaf_module(module, name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    assert torch.equal(traced(images()), model(images()))
