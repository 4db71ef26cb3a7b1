import math

import pytest
import timm
import torch

from strategies import ConfigError, Strategy, make_optimizer, make_plan, make_scheduler, parse_space
from strategies.optimization import check_optimizer_names

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
