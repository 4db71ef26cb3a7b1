"""Trials that read what is frozen end as those that compute it."""

import inspect
import io
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import DATA, DEVICE, Dice, pretrained

from search.config import load_space
from strategies import Strategy, parse_space, sample, without
from trainers import ActivationStore, ImageData, Reuse, Trainer, choose_device, open_data, unusable_fields
from trainers.data.places import place_of
from trainers.data.split import ResidentSplit

SPACE = parse_space(load_space("full"))
FAMILIES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "swin_of_tests"]


@pytest.fixture
def reuse(tmp_path) -> Reuse:
    return Reuse(ActivationStore(tmp_path, 2**30), always=True)


def histories(source, strategy, reuse, seed=0, device=DEVICE):
    # One after the other: a trainer seeds the global generator, from which dropout draws.
    read = Trainer(source, DATA, strategy, seed, device, reuse=reuse)
    found = [result.metrics for result in read]
    computed = Trainer(source, DATA, strategy, seed, device)
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
    # What changes the images in every epoch, or leaves nothing frozen, is never read; of the rest two a family.
    space = without(space, ["mixup", "cutmix", "grow_from", "delta", "tta", "depth_from"])
    for seed in range(FAMILIES.index(name) % 3, 6, 3):
        strategy = sample(space, Dice(seed)).replace(depth=[0, 1, 0.25, 0.5, 0.6, 2][seed], batch_size=16, epochs=3)
        strategy = strategy.replace(unfreeze_epochs=min(strategy.unfreeze_epochs, 2), views=2)
        read, found, computed, expected = histories(source, strategy, reuse, seed)
        assert "val" in read.reused.known, read.reused.reason
        assert read.reused.training(0) is not None, read.reused.reason
        assert computed.reused.known == {}
        assert_alike(found, expected)
        kept = computed.weights()
        for entry, tensor in read.weights().items():
            assert torch.allclose(tensor, kept[entry], rtol=1e-4, atol=1e-5), entry


VARIED = [
    {"depth": 0, "augment": "strong"},
    {"depth": 1, "policy": "auto"},
    {"depth": 2, "policy": "rand", "augment": "light", "sampling": "balanced", "lr_by": "gradient"},
    {"depth": 2, "policy": "trivial", "augment": "custom", "hue": 20.0, "dropout": 0.3, "swa_epochs": 2},
]


# Every way on one family, and every family in one way.
@pytest.mark.parametrize(
    ("name", "fields"),
    [(FAMILIES[0], fields) for fields in VARIED] + [(name, VARIED[k]) for k, name in enumerate(FAMILIES[1:])],
)
def test_views_train_alike_whether_their_prefix_is_read_or_computed(name, fields, reuse):
    # In its third epoch a trial reads again what it stored in its first.
    strategy = Strategy(**fields, views=2, epochs=3, batch_size=16)
    read, found, _, expected = histories(pretrained(name), strategy, reuse)
    assert read.reused.reason == "reuse: as asked"
    assert read.reused.training(0) is not None
    assert found == expected
    assert len({result["train_loss"] for result in found}) == 3


def test_views_are_drawn_in_full_precision_whatever_the_model_computes_in(reuse):
    strategy = Strategy(depth=1, augment="custom", hue=90.0, saturation=0.5, views=1, epochs=2, batch_size=16)
    read, found, _, expected = histories(
        pretrained("test_resnet"), strategy, reuse, device=choose_device("cpu", "bf16")
    )
    assert read.reused.training(0) is not None
    assert found == expected


def entries(folder) -> int:
    return len(list((folder / "activations").glob("*.safetensors")))


def test_a_view_is_stored_when_an_epoch_first_shows_it_and_shared_by_trials(reuse, tmp_path):
    source = pretrained("test_resnet")

    def stored_by_epoch(**fields) -> list[int]:
        trainer = Trainer(source, DATA, Strategy(depth=2, epochs=4, **fields), 0, DEVICE, reuse=reuse)
        before = entries(tmp_path)
        return [before, *(entries(tmp_path) for _ in trainer)]

    assert stored_by_epoch(augment="light", views=2) == [1, 2, 3, 3, 3]
    assert stored_by_epoch(augment="light", views=3, lr=0.01) == [3, 3, 3, 4, 4]
    assert stored_by_epoch(augment="medium", views=9)[-1] == 8


class Unreadable(ResidentSplit):
    """The same images, which must not be asked for."""

    def __init__(self, split: ResidentSplit) -> None:
        super().__init__(split.targets, split.names, split._pixels, split._rows)

    def _images(self, places, batch_size, device):
        raise AssertionError("was computed from the images")


@pytest.mark.parametrize("fields", [{}, {"augment": "strong", "views": 2}], ids=str)
def test_a_deeper_cut_is_computed_from_what_another_process_stored(fields, tmp_path):
    source = pretrained("test_resnet")
    for depth in (3, 2, 0):
        # A new one knows nothing of the cuts that were made before.
        reuse = Reuse(ActivationStore(tmp_path, 2**30), always=True)
        data = DATA if depth == 3 else replace(DATA, train=Unreadable(DATA.train))
        strategy = Strategy(depth=depth, dropout=0.1 * depth, epochs=2, batch_size=16, **fields)
        found = [result.metrics for result in Trainer(source, data, strategy, 0, DEVICE, reuse=reuse)]
        assert found == [result.metrics for result in Trainer(source, DATA, strategy, 0, DEVICE)]


def test_a_view_without_room_is_computed_from_the_images(tmp_path):
    source = pretrained("test_resnet")
    strategy = Strategy(depth=2, augment="light", tta="flip", views=2, epochs=4, batch_size=16)
    one = Reuse(ActivationStore(tmp_path / "one", 2**30), always=True)
    next(Trainer(source, DATA, strategy, 0, DEVICE, reuse=one))
    (entry,) = (tmp_path / "one" / "activations").glob("*.safetensors")
    tight = Reuse(ActivationStore(tmp_path / "tight", entry.stat().st_size - 1), always=True)
    read, found, _, expected = histories(source, strategy, tight)
    assert read.reused.training(0) is None
    assert found == expected


def test_a_trial_goes_on_in_the_view_of_its_next_epoch(reuse):
    strategy = Strategy(depth=2, augment="strong", views=3, image_scale=0.75, epochs=5, batch_size=16)
    source = pretrained("test_resnet")
    expected = [result.metrics for result in Trainer(source, DATA, strategy, 0, DEVICE)]
    first = Trainer(source, DATA, strategy, 0, DEVICE, reuse=reuse)
    for _ in range(2):
        next(first)
    kept = io.BytesIO()
    torch.save(first.state_dict(), kept)
    kept.seek(0)
    second = Trainer(source, DATA, strategy, 0, DEVICE, reuse=reuse)
    second.load_state_dict(torch.load(kept, weights_only=True))
    assert [result.metrics for result in second] == expected[2:]


def test_mixed_views_are_computed_and_their_mixtures_drawn_anew(reuse):
    strategy = Strategy(depth=1, augment="light", mixup=0.4, views=1, epochs=3, batch_size=16, lr=1e-9)
    read, found, _, expected = histories(pretrained("test_resnet"), strategy, reuse)
    assert read.reused.training(0) is None
    assert found == expected
    assert len({result["train_loss"] for result in found}) == 3


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
        ({"depth": 1, "augment": "light", "views": 2}, {"val"}, "reuse: as asked"),
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

    def after(**strategy) -> int:
        Trainer(source, DATA, Strategy(**strategy), 0, DEVICE, reuse=reuse)
        return entries(tmp_path)

    assert after(depth=2, lr=0.01) == 2
    assert after(depth=2, lr=0.1, dropout=0.3, weight_decay=0.1) == 2
    assert after(depth=1) == 4
    assert after(depth=0) == 6


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


def test_every_view_has_to_pay_for_itself(tmp_path):
    reuse = Reuse(ActivationStore(tmp_path, 2**30), sharing=100.0)
    strategy = Strategy(depth=0, augment="light", tta="flip", epochs=6, views=6)
    trainer = Trainer(pretrained("test_resnet"), DATA, strategy, 0, DEVICE, reuse=reuse)
    # Each is read once, by this trial alone, so that nothing can spare what storing it costs.
    assert "1 passes spare less than storing costs" in trainer.reused.reason
    assert trainer.reused.training(0) is None


def test_an_image_that_was_edited_where_no_sample_sees_it_is_computed_anew(tmp_path, reuse):
    root = tmp_path / "set"
    names = {**inspect.signature(open_data).parameters, **inspect.signature(place_of).parameters}
    options = {name: None for name in names if name not in ("palette", "masks", "seen", "where")}
    options |= {"task": "classification", "source": "folder", "root": str(root), "image_size": 32, "in_chans": 3}
    options |= {"val_fraction": 0.25, "test_fraction": 0.25, "split_seed": 0, "fold": 0, "workers": 0}
    options |= {
        "on_bad_image": "refuse",
        "on_duplicates": "report",
        "on_seen": "drop",
        "on_small_class": "refuse",
        "cache": str(tmp_path / "cache"),
        "cache_gib": 0.0,
    }

    def saved(colour: int) -> ImageData:
        """A set of bitmaps whose middle no sample sees."""
        for seed in range(24):
            path = root / "ab"[seed % 2] / f"{seed}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 256, (160, 160, 3), dtype=np.uint8)
            pixels[90:150] = colour
            Image.fromarray(pixels).save(path)
            os.utime(path, ns=(10**18, 10**18 + colour))
        return open_data(**options)

    source, strategy = pretrained("test_resnet"), Strategy(depth=0, epochs=1, batch_size=8)
    before = saved(0)
    list(Trainer(source, before, strategy, 0, DEVICE, reuse=reuse))
    after = saved(255)
    assert (after.fingerprint, after.contents == before.contents) == (before.fingerprint, False)
    (read,) = Trainer(source, after, strategy, 0, DEVICE, reuse=reuse)
    (computed,) = Trainer(source, after, strategy, 0, DEVICE)
    assert_alike([read.metrics], [computed.metrics])
