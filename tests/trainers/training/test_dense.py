"""Segmentation and detection are trained like everything else, and share what is frozen like everything else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import DATA, DEVICE, short_of_memory

from strategies import IGNORED, Strategy
from trainers import TASKS, ActivationStore, ModelSource, Reuse, Trainer, Weights, open_data, top_of
from trainers.scoring import pictures

SIDE = 64
LOSSES = {"segmentation": "cross_entropy+dice", "detection": "detector"}
DECODERS = [
    ("segmentation", "unet"),
    ("segmentation", "fpn"),
    ("segmentation", "deeplabv3plus"),
    ("segmentation", "fcn"),
    ("detection", "faster_rcnn"),
    ("detection", "retinanet"),
    ("detection", "fcos"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A few scenes for either task."""
    cache = tmp_path_factory.mktemp("cache")
    return {task: scenes(task, cache, 8) for task in LOSSES}


@pytest.fixture(scope="module")
def larger_sets(tmp_path_factory):
    """Scenes enough that a rank which turns moves a precision by a small step."""
    cache = tmp_path_factory.mktemp("cache")
    return {task: scenes(task, cache, 24) for task in LOSSES}


def scenes(task: str, cache: Path, count: int):
    from search.config import DataConfig

    limits = {"limit_train": count, "limit_val": count // 2, "limit_test": count // 2}
    config = DataConfig(source="scenes", image_size=SIDE, cache=str(cache), workers=0, **limits)
    return open_data(task=task, in_chans=3, **config.model_dump())


def source_for(data, task: str, decoder: str, name: str = "test_resnet") -> ModelSource:
    classes = len(data.classes)
    weights = Weights("none", "random", None)
    return ModelSource(name, weights, classes, SIDE, top=top_of(task, decoder, classes, SIDE))


def strategy_for(task: str, **fields) -> Strategy:
    return Strategy(loss=LOSSES[task], batch_size=4, epochs=2, lr=2e-3, **fields)


def run(trainer: Trainer) -> list[dict[str, float]]:
    return [{name: value for name, value in result.metrics.items() if name != "lr"} for result in trainer]


# Of every decoder with the whole encoder frozen; of those that take other maps with a cut between the maps.
@pytest.mark.parametrize(
    ("depth", "task", "decoder"),
    [(0, *decoder) for decoder in DECODERS]
    + [(2, "segmentation", decoder) for decoder in ("unet", "deeplabv3plus", "fcn")]
    + [(2, "detection", "faster_rcnn")],
)
def test_trials_score_the_same_whether_or_not_they_share_what_is_frozen(sets, tmp_path, task, decoder, depth):
    data, strategy = sets[task], strategy_for(task, depth=depth, batch_norm="frozen_stats")
    source = source_for(data, task, decoder)
    plain = run(Trainer(source, data, strategy, 0, DEVICE))
    shared = Trainer(source, data, strategy, 0, DEVICE, reuse=Reuse(ActivationStore(tmp_path, 2**30), always=True))
    assert shared.reused.reason == "reuse: as asked"
    assert run(shared) == [pytest.approx(epoch, abs=1e-5) for epoch in plain]


@pytest.mark.parametrize("name", ["test_efficientnet", "vit_tiny_patch16_224", "convnext_zepto_rms"])
@pytest.mark.parametrize("task", LOSSES)
def test_several_feature_levels_cross_the_cut_of_any_family(larger_sets, tmp_path, task, name):
    data, strategy = larger_sets[task], strategy_for(task, depth=1, batch_norm="frozen_stats").replace(epochs=1)
    source = source_for(data, task, {"segmentation": "fpn", "detection": "fcos"}[task], name)
    plain = run(Trainer(source, data, strategy, 0, DEVICE))
    shared = Trainer(source, data, strategy, 0, DEVICE, reuse=Reuse(ActivationStore(tmp_path, 2**30), always=True))
    assert shared.reused.reason == "reuse: as asked"
    assert len(shared.reused.known["train"].cut.rows) > 1
    for found, expected in zip(run(shared), plain, strict=True):
        # Batches of other sizes are rounded otherwise, and a rank that turns for it moves a precision by a step.
        assert found.pop("train_loss") == pytest.approx(expected.pop("train_loss"), abs=1e-4)
        assert found == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("task", LOSSES)
def test_training_lowers_the_loss(sets, task):
    data = sets[task]
    source = source_for(data, task, {"segmentation": "unet", "detection": "faster_rcnn"}[task])
    strategy = Strategy(loss=LOSSES[task], batch_size=4, epochs=6, lr=3e-3, warmup_epochs=0.5)
    losses = [result.metrics["train_loss"] for result in Trainer(source, data, strategy, 0, DEVICE)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("task", LOSSES)
def test_augmented_training_goes_on_after_a_break_as_without_one(sets, task):
    data = sets[task]
    source = source_for(data, task, {"segmentation": "fcn", "detection": "fcos"}[task])
    strategy = strategy_for(task, augment="strong", depth=1.0)
    expected = run(Trainer(source, data, strategy, 0, DEVICE))
    broken = Trainer(source, data, strategy, 0, DEVICE)
    next(broken)
    # Taken before the next trainer seeds torch.
    state = broken.state_dict()
    resumed = Trainer(source, data, strategy, 0, DEVICE)
    resumed.load_state_dict(state)
    assert run(resumed) == [pytest.approx(expected[1])]


@pytest.mark.parametrize("task", LOSSES)
def test_pictures_show_image_truth_and_prediction_side_by_side(larger_sets, task):
    data = larger_sets[task]
    source = source_for(data, task, {"segmentation": "fcn", "detection": "fcos"}[task])
    trainer = Trainer(source, data, strategy_for(task), 0, DEVICE)
    drawn = pictures(data, trainer.look())
    assert len(drawn) == 6
    for picture in drawn:
        assert picture.shape == (192, 3 * 192 + 2 * 4, 3)
    # Where there is something to find the truth is not the bare image.
    panels = [(picture[:, :192], picture[:, 196:388]) for picture in drawn]
    assert any((image != truth).any() for image, truth in panels)


def test_a_classifier_has_no_pictures():
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    assert Trainer(source, DATA, Strategy(epochs=1), 0, DEVICE).look() is None


def test_the_decoders_rate_has_a_factor_of_its_own(sets):
    source = source_for(sets["segmentation"], "segmentation", "unet")
    trainer = Trainer(source, sets["segmentation"], strategy_for("segmentation", decoder_lr_scale=5.0), 0, DEVICE)
    scales = {param.name: param.lr_scale for param in trainer.plan.params if param.name.startswith("top.")}
    assert {scale for name, scale in scales.items() if name.startswith("top.decoder.")} == {5.0}
    assert {scale for name, scale in scales.items() if not name.startswith("top.decoder.")} == {1.0}
    assert torch.isfinite(torch.tensor(next(trainer).metrics["train_loss"]))


@pytest.mark.parametrize(
    ("decoder", "loss", "why"),
    [
        # The decoder's BatchNorm is new and always in train mode.
        ("unet", "cross_entropy", "BatchNorm in train mode"),
        ("fpn", "cross_entropy+lovasz", r"strategy.loss=cross_entropy\+lovasz"),
    ],
)
def test_a_batch_of_masks_that_parts_would_train_in_another_way_is_not_divided(sets, decoder, loss, why):
    data, strategy = sets["segmentation"], Strategy(loss=loss, batch_size=4, batch_norm="frozen_stats")
    trainer = short_of_memory(Trainer(source_for(data, "segmentation", decoder), data, strategy, 0, DEVICE), 2)
    with pytest.raises(MemoryError, match=rf"because of {why}; take a smaller strategy.batch_size$"):
        next(trainer)


def test_pixels_that_do_not_count_are_grey_in_truth_and_prediction_and_the_legend_has_every_colour():
    dense = TASKS["segmentation"].dense
    target = torch.ones(8, 8, dtype=torch.uint8)
    target[:, 4:] = IGNORED
    drawn = dense.draw(
        torch.zeros(3, 8, 8, dtype=torch.uint8), target, torch.full_like(target, 2), ["sky", "cat", "dog"]
    )
    panels = [drawn[:, start : start + 192] for start in (0, 196, 392)]
    legend = dense.legend(["sky", "cat", "dog"])
    assert list(legend) == ["sky", "cat", "dog", "(not counted)"]
    assert legend["sky"] == "transparent"
    for panel, name in zip(panels[1:], ("cat", "dog"), strict=True):
        for column, shown in ((10, name), (180, "(not counted)")):
            # More than half of a black pixel's colour.
            colour = 0.55 * np.array(list(bytes.fromhex(legend[shown][1:])))
            assert panel[100, column] == pytest.approx(colour, abs=1)
