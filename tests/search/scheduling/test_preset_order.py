"""Presets that share what is frozen are tried in the order in which the least is computed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lab import SMALL
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from search.scheduling import each_from_the_last, frozen_in_front
from search.storage import PRESET
from strategies import parse_space, split_blocks
from trainers import create_classifier

PRESETS = {"probe": 0, "three": 3, "all": 5, "one": 1, "two": 2}
# What is computed of so many images at once is an entry of the store: proofs of a cut take fewer, training batches too.
TRAIN, TOGETHER = 300, 256


def study(new_lab, **changes):
    presets = {name: {"depth": depth, "lr": 1e-3} for name, depth in PRESETS.items()}
    space = SMALL["strategy"] | {"depth": {"low": 0, "high": 5}}
    data = SMALL["data"] | {"limit_train": TRAIN}
    return new_lab(presets=presets, strategy=space, data=data, budget={"trials": len(PRESETS)}, **changes)


@contextmanager
def counted() -> Iterator[Counter[tuple[int, ...]]]:
    """How often modules with parameters that no other has the like of were run on a whole batch of what is stored."""
    runs: Counter[tuple[int, ...]] = Counter()

    def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
        first = inputs[0] if inputs else None
        apart = not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if isinstance(first, torch.Tensor) and len(first) == TOGETHER and apart and isinstance(module, nn.Conv2d):
            runs[tuple(module.weight.shape)] += 1

    hook = register_module_forward_pre_hook(note)
    try:
        yield runs
    finally:
        hook.remove()


def convolutions(blocks: int) -> Counter[tuple[int, ...]]:
    """The weights' shapes in so many blocks, from the input."""
    model = create_classifier("test_resnet", 10, 32)
    names = [name for block in split_blocks(model).body[:blocks] for name in block.modules]
    modules = dict(model.named_modules())
    return Counter(tuple(modules[n].weight.shape) for n in dict.fromkeys(names) if isinstance(modules[n], nn.Conv2d))


def test_over_all_presets_each_block_is_computed_once_for_an_image(new_lab):
    lab = study(new_lab, reuse="on")
    with counted() as runs:
        lab.train()
    assert [t.user_attrs[PRESET] for t in lab.trials()] == ["three", "two", "all", "one", "probe"]
    blocks = len(split_blocks(create_classifier("test_resnet", 10, 32)).body)
    assert runs == convolutions(blocks)
    assert runs.total() > 0


def test_without_reuse_the_order_is_the_same(new_lab):
    lab = study(new_lab, reuse="off")
    lab.train("budget.trials=1")
    queued = [trial.system_attrs["fixed_params"]["depth"] for trial in lab.trials()]
    assert queued == [3, 2, 5, 1, 0]


def test_what_shares_nothing_or_is_stored_keeps_its_place():
    frozen = {"probe": 9, "all": 0, "one": 8, "also": 8, "five": 4}
    assert each_from_the_last(frozen) == ["five", "all", "one", "also", "probe"]
    assert each_from_the_last(frozen, {9}) == ["probe", "all", "five", "one", "also"]


@pytest.mark.parametrize(
    ("space", "params", "frozen"),
    [
        ({"depth": {"low": 0, "high": 4}}, {"depth": 4}, 5),
        ({"depth": {"low": 0.0, "high": 1.0}}, {"depth": 0.0, "lr": 0.1}, 9),
        ({"depth": 2}, {}, 7),
        ({"depth": 3, "depth_from": "middle"}, {}, 3),
        ({"depth_from": {"choices": ["head", "input"]}, "depth": 2}, {"depth_from": "input"}, 0),
        ({}, {}, 0),
    ],
)
def test_frozen_blocks_of_a_queued_trial_follow_from_its_parameters_and_the_space(space, params, frozen):
    assert frozen_in_front(params, parse_space(space), 9) == frozen
