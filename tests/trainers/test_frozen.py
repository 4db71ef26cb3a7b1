"""Trials that read what is frozen end as those that compute it."""

import math

import pytest
import torch
from test_full_space import DATA, DEVICE, SPACE, Dice, pretrained

from strategies import Strategy, sample, without
from trainers import ActivationStore, Reuse, Trainer, unusable_fields

FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "swin_of_tests"]


@pytest.fixture
def reuse(tmp_path) -> Reuse:
    return Reuse(ActivationStore(tmp_path, 2**30), always=True)


def histories(source, strategy, reuse, seed=0):
    # One after the other: a trainer seeds the global generator, from which dropout draws.
    read = Trainer(source, DATA, strategy, seed, DEVICE, reuse=reuse)
    found = [result.metrics for result in read]
    computed = Trainer(source, DATA, strategy, seed, DEVICE)
    return read, found, computed, [result.metrics for result in computed]


def assert_alike(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_random_strategies_train_alike_whether_the_prefix_is_read_or_computed(name, reuse):
    source = pretrained(name)
    space = without(SPACE, unusable_fields(SPACE, source, "classification", has_teacher=False))
    # What changes the images in every epoch, or leaves nothing frozen, is never read; of the rest six for each family.
    space = without(space, ["augment", "policy", "mixup", "cutmix", "grow_from", "delta", "tta", "depth_from"])
    for seed in range(6):
        strategy = sample(space, Dice(seed)).replace(depth=[0, 1, 0.25, 0.5, 0.6, 2][seed], batch_size=16, epochs=3)
        strategy = strategy.replace(unfreeze_epochs=min(strategy.unfreeze_epochs, 2))
        read, found, computed, expected = histories(source, strategy, reuse, seed)
        assert read.reused.known.keys() == {"train", "val"}, read.reused.reason
        assert computed.reused.known == {}
        assert_alike(found, expected)
        kept = computed.weights()
        for entry, tensor in read.weights().items():
            assert torch.allclose(tensor, kept[entry], rtol=1e-4, atol=1e-5), entry


def test_what_is_frozen_works_as_in_eval_mode_dropping_nothing(reuse):
    source = pretrained("test_efficientnet")
    strategy = Strategy(depth=1, drop_path=0.9, dropout=0.0, epochs=2, batch_size=16)
    read, found, _, expected = histories(source, strategy, reuse)
    assert_alike(found, expected)
    statistics = {name: t for name, t in source.build(0).state_dict().items() if "running" in name}
    asleep = read.plan.eval_modules(0)
    frozen = [name for name in statistics if name.rpartition(".")[0] in asleep]
    assert frozen
    assert all(torch.equal(read.model.state_dict()[name], statistics[name]) for name in frozen)


@pytest.mark.parametrize(
    ("strategy", "known", "reason"),
    [
        ({"depth": 1.0}, set(), "no reuse: no block is frozen"),
        ({"depth": 0.5, "depth_from": "input"}, set(), "no reuse: no block is frozen"),
        ({"depth": 1, "augment": "light"}, {"val"}, "reuse: as asked"),
        ({"depth": 1, "mixup": 0.2}, {"val"}, "reuse: as asked"),
        ({"depth": 1, "tta": "flip"}, {"train"}, "reuse: as asked"),
        ({"depth": 1, "tta": "flip", "augment": "light"}, set(), "no reuse: images change every epoch"),
        ({"depth": 1, "unfreeze_epochs": 1}, {"train", "val"}, "reuse: as asked"),
        ({"depth": 2, "parameters": "lora"}, {"train", "val"}, "reuse: as asked"),
    ],
)
def test_only_what_stays_the_same_is_read(strategy, known, reason, reuse):
    trainer = Trainer(pretrained("test_resnet"), DATA, Strategy(**strategy), 0, DEVICE, reuse=reuse)
    assert trainer.reused.known.keys() == known
    assert trainer.reused.reason == reason


def test_trials_of_one_depth_share_an_entry_and_those_of_another_build_on_it(reuse, tmp_path):
    source = pretrained("test_resnet")

    def entries(**strategy) -> int:
        Trainer(source, DATA, Strategy(**strategy), 0, DEVICE, reuse=reuse)
        return len(list((tmp_path / "activations").glob("*.safetensors")))

    assert entries(depth=2, lr=0.01) == 2
    assert entries(depth=2, lr=0.1, dropout=0.3, weight_decay=0.1) == 2
    assert entries(depth=1) == 4
    assert entries(depth=0) == 6


def test_a_full_store_is_no_reason_to_fail(tmp_path):
    reuse = Reuse(ActivationStore(tmp_path, 100), always=True)
    trainer = Trainer(pretrained("test_resnet"), DATA, Strategy(depth=0, epochs=1), 0, DEVICE, reuse=reuse)
    assert trainer.reused.known == {}
    assert "no reuse: the activation cache" in trainer.reused.reason
    assert math.isfinite(next(trainer).metrics["train_loss"])


def test_whether_it_pays_is_weighed(tmp_path):
    reuse = Reuse(ActivationStore(tmp_path, 2**30))
    trainer = Trainer(pretrained("test_resnet"), DATA, Strategy(depth=0, epochs=50), 0, DEVICE, reuse=reuse)
    assert trainer.reused.reason.startswith(("reuse: an image takes", "no reuse: an image takes"))
