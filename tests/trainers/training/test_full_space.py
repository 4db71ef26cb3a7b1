"""Strategies drawn from the whole space, on small models of five families."""

import copy
import math
import random

import pytest
import torch
from small_training import DATA, DEVICE, pretrained

from search.config import load_space
from strategies import Strategy, parse_space, sample, without
from trainers import ModelSource, Teacher, Trainer, Weights, unusable_fields
from trainers.models import normaliser

SPACE = parse_space(load_space("full"))
# Strategies for each family: each choice of the longest list, which has six, is in one of them.
DRAWS = 6


class Spread:
    """Answers the suggestions of one of several draws, which together go evenly through every range and list.

    Args:
        number: Of the draw, from 0.
        draws: How many there are; of fewer choices each is drawn.
        salt: Other salts combine the answers otherwise.
    """

    def __init__(self, number: int, draws: int, salt: str) -> None:
        self._number, self._draws, self._salt = number, draws, salt

    def _share(self, name) -> float:
        """At least 0 and less than 1, in another of as many equal parts for each draw."""
        generator = random.Random(f"{self._salt} {name}")
        order = generator.sample(range(self._draws), self._draws)
        within = [generator.random() for _ in order]
        return (order[self._number] + within[self._number]) / self._draws

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return low + step * int(self._share(name) * (1 + (high - low) // step))

    def suggest_float(self, name, low, high, *, step=None, log=False):
        return low * (high / low) ** self._share(name) if log else low + (high - low) * self._share(name)

    def suggest_categorical(self, name, choices):
        return choices[int(self._share(name) * len(choices))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "swin_of_tests"])
def test_two_steps_of_any_strategy_change_what_is_trained_and_no_bit_of_what_is_frozen(name):
    source = pretrained(name)
    teacher = Teacher(
        ModelSource("test_resnet", Weights("none", "random", None), 2, 32).build(0),
        normaliser(source.mean, source.std, DEVICE),
        32,
        DEVICE,
    )
    space = without(SPACE, unusable_fields(SPACE, source, "classification", has_teacher=True))
    for seed in range(DRAWS):
        strategy = sample(space, Spread(seed, DRAWS, name)).replace(batch_size=32)
        trainer = Trainer(source, DATA, strategy, seed, DEVICE, teacher)
        before = copy.deepcopy(dict(trainer.model.named_buffers()))
        moved = names_moved_by_each_step(trainer)
        result = next(trainer)
        assert math.isfinite(result.metrics["train_loss"]), strategy.to_yaml()
        assert len(moved) == 2
        for param in trainer.plan.params:
            changed = any(param.name in names for names in moved)
            what = f"strategy {seed}: {param.name} is {'trained' if param.trained_in(0) else 'frozen'}"
            assert changed == param.trained_in(0) or step_is_lost_in_rounding(trainer, param.name), what
        asleep = trainer.plan.eval_modules(0)
        for entry, tensor in trainer.model.named_buffers():
            assert entry.rpartition(".")[0] not in asleep or torch.equal(before[entry], tensor), (
                f"strategy {seed}: {entry}"
            )


def names_moved_by_each_step(trainer: Trainer) -> list[set[str]]:
    """Filled as it trains; an optimizer of signs may take back in the second step what it did in the first."""
    params = dict(trainer.model.named_parameters())
    start = {name: param.detach().clone() for name, param in params.items()}
    moved: list[set[str]] = []

    def compare(*_):
        moved.append({name for name, param in params.items() if not torch.equal(start[name], param)})

    trainer.optimizer.register_step_post_hook(compare)
    return moved


def step_is_lost_in_rounding(trainer: Trainer, name: str) -> bool:
    """Whether a trained tensor's gradient is so small beside its values that float32 cannot hold the step."""
    param = dict(trainer.model.named_parameters())[name]
    lr = next((g["lr"] for g in trainer.optimizer.param_groups if any(p is param for p in g["params"])), 0.0)
    return param.grad is not None and bool((lr * param.grad.abs() <= 2**-23 * param.abs()).all())


def test_the_whole_space_is_the_whole_strategy():
    left_out = {"lora_alpha", "decay_epochs", "patience_epochs", "warmup_steps", "warmup_lr"}
    assert Strategy().to_dict().keys() - SPACE.keys() == left_out
