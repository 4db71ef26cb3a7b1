import io
import math
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import get_optimizer_info, list_optimizers

from strategies import ConfigError, Strategy, make_optimizer, make_plan, make_scheduler, parse_space
from strategies.optim import check_optimizer_names
from strategies.optim.optimization import build_optimizer, build_scheduler, optimizer_parameters

UPDATES = 10


def rates(strategy: Strategy) -> list[tuple[float, float]]:
    """Learning rate of head and of the last block at each update."""
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = make_optimizer(model, make_plan(model, strategy), strategy)
    scheduler = make_scheduler(optimizer, strategy, UPDATES)
    found = []
    for update in range(strategy.epochs * UPDATES):
        scheduler.step_update(update)
        by_scale = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
        found.append((by_scale[1.0], by_scale[strategy.layer_decay]))
    return found


def test_cosine_with_warm_up_follows_its_formula_in_every_block():
    strategy = Strategy(depth=1, lr=0.1, layer_decay=0.5, epochs=3, warmup_epochs=0.5)
    for update, (head, block) in enumerate(rates(strategy)):
        if update < 5:
            start = 0.1 / 6
            expected = start + update * (0.1 - start) / 5
        else:
            expected = 0.05 * (1 + math.cos(math.pi * update / 30))
        assert head == pytest.approx(expected, rel=1e-9)
        assert block == pytest.approx(expected / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda t: 0.1),
        ("poly", lambda t: 0.1 * (1 - t / 30)),
        ("step", lambda t: 0.1 * 0.1 ** (t // 10)),
    ],
)
def test_other_schedules_follow_their_formulas(schedule, expected):
    found = rates(Strategy(depth=1, lr=0.1, layer_decay=0.5, epochs=3, schedule=schedule))
    for update, (head, block) in enumerate(found):
        assert head == pytest.approx(expected(update), rel=1e-6)
        assert block == pytest.approx(expected(update) / 2, rel=1e-6)


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.1, 0.25, 3.0])
def test_no_update_before_the_last_is_of_no_length(warmup_epochs):
    found = rates(Strategy(depth=1, lr=0.1, layer_decay=0.5, epochs=3, warmup_epochs=warmup_epochs))
    assert all(head > 0 for head, _ in found)
    assert max(head for head, _ in found) <= 0.1 + 1e-12


@pytest.mark.parametrize("name", ["adamw", "sgd", "nadamw", "lion", "lamb", "rmsprop"])
def test_the_optimizer_is_timms_with_rate_and_decay_as_asked(name):
    strategy = Strategy(depth=0, optimizer=name, lr=0.02, weight_decay=0.3)
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = make_optimizer(model, make_plan(model, strategy), strategy)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.02, 0.3), (0.02, 0.0)}


def test_an_optimizer_that_needs_second_derivatives_is_refused():
    strategy = Strategy(optimizer="adahessian")
    model = timm.create_model("test_resnet", num_classes=3)
    with pytest.raises(ConfigError, match=r"strategy\.optimizer: 'adahessian' needs second derivatives"):
        make_optimizer(model, make_plan(model, strategy), strategy)


def test_an_unknown_optimizer_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"strategy\.optimizer: 'adamv' is no optimizer of timm; did you mean '\w+'"):
        check_optimizer_names(parse_space({"optimizer": {"choices": ["sgd", "adamv"]}}))
    check_optimizer_names(parse_space({"optimizer": "sgd"}))
    check_optimizer_names({})


FIELDS = {"momentum": (0.6, 0.8), "beta1": (0.7, 0.85), "beta2": (0.9, 0.95), "nesterov": (True, False)}
# These want a GPU or packages of their own, so that only timm's description of them can be looked at.
ELSEWHERE = tuple(name for name in list_optimizers() if isinstance(get_optimizer_info(name).opt_class, str))
HERE = tuple(name for name in list_optimizers() if name not in (*ELSEWHERE, "adahessian"))
# Kron waits for the compiler of torch to be imported.
KRON = tuple(name for name in HERE if name.startswith("kron"))


def trained(name, updates=15, **parameters):
    """Where an optimizer ends on noisy gradients, as one vector."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 6), (6,))]
    optimizer = build_optimizer([{"params": tensors}], name, lr=0.05, weight_decay=0.01, **parameters)
    for _ in range(updates):
        for tensor in tensors:
            tensor.grad = tensor.detach() + torch.randn(tensor.shape, generator=generator)
        torch.manual_seed(0)
        optimizer.step()
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize(
    "names", [tuple(name for name in HERE if name not in KRON), pytest.param(KRON, marks=pytest.mark.slow)]
)
def test_every_parameter_that_is_listed_has_an_effect(names):
    for name in names:
        for field in optimizer_parameters(name):
            one, other = (trained(name, **{field: value}) for value in FIELDS[field])
            assert not torch.equal(one, other), (name, field)


@pytest.mark.parametrize("name", ["adadelta", "adafactor", "adamw", "sgd", "lion"])
def test_a_parameter_that_is_not_listed_is_ignored(name):
    for field in FIELDS.keys() - optimizer_parameters(name):
        assert torch.equal(trained(name, **{field: FIELDS[field][0]}), trained(name)), field


def test_where_an_optimizer_cannot_be_had_timm_says_what_it_accepts():
    for name in ELSEWHERE:
        info = get_optimizer_info(name)
        accepted = {"momentum"} if info.has_momentum else set()
        accepted |= {"beta1", "beta2"} if info.has_betas else set()
        # Of these, bitsandbytes' SGD takes it and does not use it.
        accepted |= {"nesterov"} if "nesterov" in (info.defaults or {}) and not name.startswith("bnb") else set()
        assert optimizer_parameters(name) == accepted, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="bitsandbytes may be there")
@pytest.mark.parametrize("parameters", [{}, {"beta1": 0.8}])
def test_an_optimizer_that_wants_a_gpu_is_refused_without_one(parameters):
    with pytest.raises(ConfigError, match=r"strategy\.optimizer: 'bnbadam' cannot be made: CUDA required"):
        trained("bnbadam", **parameters)


def test_an_optimizer_of_a_later_timm_keeps_its_own_values():
    assert optimizer_parameters("adamwxyz") == frozenset()


def test_without_parameters_of_its_own_an_optimizer_is_as_timm_makes_it():
    for name in HERE:
        mine, timms = (
            make([{"params": [torch.nn.Parameter(torch.ones(3, 3))]}], name, lr=0.05, weight_decay=0.01)
            for make in (build_optimizer, timm.optim.create_optimizer_v2)
        )
        assert type(mine) is type(timms)
        # But for the kernels that step.
        assert repr(mine).replace("fused: True", "fused: None") == repr(timms)


def test_sgd_keeps_as_much_of_the_last_step_as_asked():
    tensor = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer([{"params": [tensor]}], "sgd", lr=0.1, weight_decay=0.0, momentum=0.5, nesterov=False)
    velocity, value = 0.0, 1.0
    for gradient in (1.0, -2.0, 3.0):
        tensor.grad = torch.tensor([gradient])
        optimizer.step()
        velocity = 0.5 * velocity + gradient
        value -= 0.1 * velocity
        assert tensor.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "nlars", "momentum"])
def test_without_momentum_there_is_no_nesterov(name):
    assert torch.equal(trained(name, momentum=0.0, nesterov=True), trained(name, momentum=0.0, nesterov=False))


@pytest.mark.parametrize(
    ("name", "given", "betas"),
    [
        ("adamw", {"beta1": 0.8}, (0.8, 0.999)),
        ("adamw", {"beta2": 0.98}, (0.9, 0.98)),
        ("lion", {"beta1": 0.8}, (0.8, 0.99)),
        ("cadafactor", {"beta1": 0.8}, None),
        ("adan", {"beta1": 0.8, "beta2": 0.9}, (0.8, 0.92, 0.9)),
    ],
)
def test_a_beta_that_is_not_given_is_the_optimizers_own(name, given, betas):
    optimizer = build_optimizer(
        [{"params": [torch.nn.Parameter(torch.ones(2))]}], name, lr=0.1, weight_decay=0.0, **given
    )
    if betas is None:
        assert optimizer.defaults["beta1"] == 0.8
    else:
        assert tuple(optimizer.defaults["betas"]) == pytest.approx(betas)


def test_what_has_an_effect_is_known_without_waiting_for_torch():
    code = (
        "import sys; from strategies.optim.optimization import optimizer_parameters; "
        "assert optimizer_parameters('sgd') == {'momentum', 'nesterov'}; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SCHEDULES = ("constant", "cosine", "poly", "step", "multistep", "plateau", "one_cycle")


def schedule_of(name, epochs=4, updates_per_epoch=UPDATES, **asked):
    """A schedule over two groups, of which the second learns at half the rate, and its optimizer."""
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr_scale": 1.0},
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr_scale": 0.5},
    ]
    optimizer = build_optimizer(groups, "sgd", lr=0.1, weight_decay=0.0)
    made = build_scheduler(optimizer, name, lr=0.1, epochs=epochs, updates_per_epoch=updates_per_epoch, **asked)
    return made, optimizer


def walk(schedule, optimizer, scores, first_epoch=0, updates_per_epoch=UPDATES):
    """Each update's rates as shares of the peak, for epochs that end in these scores."""
    found = []
    for epoch, score in enumerate(scores, first_epoch):
        for update in range(updates_per_epoch):
            schedule.step_update(epoch * updates_per_epoch + update)
            rate, half = (group["lr"] for group in optimizer.param_groups)
            assert half == pytest.approx(rate / 2, rel=1e-12)
            found.append(rate / 0.1)
        schedule.step(epoch + 1, score)
    return found


RISING = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("poly", {"poly_power": 2.0}, lambda t: (1 - t / 40) ** 2),
        ("step", {"decay_rate": 0.5, "decay_epochs": 0.75}, lambda t: 0.5 ** (t // 7.5)),
        ("step", {"decay_rate": 0.5}, lambda t: 0.5 ** (3 * t // 40)),
        ("multistep", {"decay_rate": 0.2}, lambda t: 0.2 ** ((t >= 20) + (t >= 30))),
        ("plateau", {}, lambda t: 1.0),
        ("one_cycle", {}, lambda t: np.interp(t, [0, 18, 36, 40], [0.04, 1, 0.04, 0])),
        (
            "one_cycle",
            {"warmup_epochs": 0.5, "warmup_lr": 0.1},
            lambda t: np.interp(t, [0, 5, 10, 40], [0.1, 1, 0.1, 0]),
        ),
        ("one_cycle", {"warmup_epochs": 3, "warmup_lr": 0.1}, lambda t: np.interp(t, [0, 30, 40], [0.1, 1, 0.1])),
    ],
)
def test_a_schedule_with_settings_follows_its_formula(name, asked, expected):
    found = walk(*schedule_of(name, **asked), RISING)
    assert found == pytest.approx([float(expected(t)) for t in range(40)], rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_rises_straight_from_where_it_is_told(name):
    found = walk(*schedule_of(name, warmup_epochs=0.8, warmup_lr=0.25), RISING)
    assert found[:8] == pytest.approx([0.25 + 0.75 * t / 8 for t in range(8)], rel=1e-9)
    behind = walk(*schedule_of(name, warmup_epochs=0.8), RISING)[8:]
    if name != "one_cycle":
        assert found[8:] == pytest.approx(behind, rel=1e-12)
        assert behind == pytest.approx(walk(*schedule_of(name), RISING)[8:], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(SCHEDULES),
    epochs=st.integers(1, 7),
    updates=st.integers(1, 9),
    share=st.floats(0, 1),
    warmup_lr=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_rates_lie_above_zero_and_at_most_at_the_peak(name, epochs, updates, share, warmup_lr):
    schedule, optimizer = schedule_of(name, epochs, updates, warmup_epochs=share * epochs, warmup_lr=warmup_lr)
    found = walk(schedule, optimizer, [0.5] * epochs, updates_per_epoch=updates)
    assert min(found) > 0
    assert max(found) <= 1 + 1e-12


@pytest.mark.parametrize("updates", [1, 3, 7, 30])
def test_steps_fall_on_the_first_update_at_or_after_each_third(updates):
    for epochs in range(1, 12):
        found = walk(*schedule_of("step", epochs, updates), [0.5] * epochs, updates_per_epoch=updates)
        expected = [0.1 ** (3 * t // (epochs * updates)) for t in range(epochs * updates)]
        assert found == pytest.approx(expected, rel=1e-9), epochs


def test_plateau_cuts_the_rate_when_the_score_has_not_risen_for_so_long():
    scores = [0.5, 0.4, 0.6, 0.6, math.nan, 0.7, 0.1, 0.2, 0.3, 0.4]
    found = walk(
        *schedule_of("plateau", len(scores), 1, decay_rate=0.5, patience_epochs=2), scores, updates_per_epoch=1
    )
    # Two epochs without a rise end after the fifth, the eighth and the tenth.
    assert found == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_does_not_wait_during_the_warm_up():
    scores = [0.5, 0.4, 0.3, 0.2, 0.1]
    found = walk(*schedule_of("plateau", 5, 1, warmup_epochs=3, warmup_lr=1.0), scores, updates_per_epoch=1)
    assert found == pytest.approx([1, 1, 1, 1, 0.1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_from_its_saved_state_as_if_never_stopped(name):
    scores = [0.5, 0.4, 0.3, 0.6]
    asked = {"warmup_epochs": 0.5, "patience_epochs": 2}
    whole = walk(*schedule_of(name, **asked), scores)
    schedule, optimizer = schedule_of(name, **asked)
    assert walk(schedule, optimizer, scores[:2]) == whole[:20]
    file = io.BytesIO()
    torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, its_optimizer = schedule_of(name, **asked)
    its_optimizer.load_state_dict(state["optimizer"])
    again.load_state_dict(state["schedule"])
    assert walk(again, its_optimizer, scores[2:], first_epoch=2) == whole[20:]


def test_no_schedule_warns(recwarn):
    for name in SCHEDULES:
        schedule_of(name)
    assert not recwarn.list


def trained_convolutions(fused: bool, name: str, steps: int, **settings: float) -> list[torch.Tensor]:
    """Parameters of a small model, laid out in memory as trials have theirs, after some steps."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).to(memory_format=torch.channels_last)
    groups = [{"params": list(model.parameters())[k::2], "weight_decay": decay} for k, decay in ((0, 0.1), (1, 0.0))]
    optimizer = build_optimizer(groups, name, lr=1e-3, weight_decay=0.0, **settings)
    assert all(group["fused"] for group in optimizer.param_groups)
    if not fused:
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=False)
    images = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return [param.detach() for param in model.parameters()]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adam", {}),
        ("adamw", {"beta1": 0.8, "beta2": 0.99}),
        ("momentum", {"momentum": 0.8}),
        ("nesterov", {}),
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_fused_steps_on_a_model_are_the_plain_ones_to_rounding(name, settings):
    fused, plain = (trained_convolutions(fused, name, steps=1, **settings) for fused in (True, False))
    # Of a first step of Adam a gradient that is all but zero leaves no more than its sign.
    apart = torch.cat([(one - other).abs().flatten() for one, other in zip(fused, plain, strict=True)])
    assert apart.mean() < 1e-8
    assert (apart > 1e-6).float().mean() < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["adam", "adamw", "momentum", "nesterov", "sgd"]),
    lr=st.floats(1e-5, 0.3),
    decay=st.floats(0, 0.3),
    momentum=st.floats(0, 0.99),
    beta2=st.floats(0.5, 0.9999),
    seed=st.integers(0, 2**16),
)
def test_fused_steps_are_the_plain_ones_to_rounding_for_any_setting(name, lr, decay, momentum, beta2, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(5, 4, generator=generator)
    found = []
    for fused in (True, False):
        param = torch.nn.Parameter(start.clone())
        groups = [{"params": [param], "weight_decay": decay}]
        optimizer = build_optimizer(groups, name, lr=lr, weight_decay=0.0, momentum=momentum, beta2=beta2)
        optimizer.param_groups[0].update(fused=fused, foreach=False)
        steps = torch.Generator().manual_seed(seed + 1)
        for _ in range(5):
            param.grad = torch.randn(5, 4, generator=steps) * 0.1
            optimizer.step()
        found.append(param.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "momentum", "nesterov"])
def test_a_parameter_that_is_unfrozen_later_steps_as_it_would_by_itself(name):
    early, late, alone = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    together = build_optimizer([{"params": [early, late]}], name, lr=0.1, weight_decay=0.01)
    by_itself = build_optimizer([{"params": [alone]}], name, lr=0.1, weight_decay=0.01)
    for step in range(4):
        early.grad = torch.full((3,), 0.5)
        if step > 0:
            late.grad, alone.grad = torch.full((3,), -0.25), torch.full((3,), -0.25)
            by_itself.step()
        together.step()
        assert torch.equal(late, alone)
    assert not torch.equal(late, torch.ones(3))


def test_what_has_no_fused_step_is_made_all_the_same():
    complex_numbers = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    for name, param in (("lamb", torch.nn.Parameter(torch.zeros(2))), ("adamw", complex_numbers)):
        optimizer = build_optimizer([{"params": [param]}], name, lr=0.1, weight_decay=0.0)
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert param.abs().min() > 0
