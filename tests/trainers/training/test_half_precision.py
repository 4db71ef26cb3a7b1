"""Training in bf16, which is CUDA's default, and in fp16 with a scaled loss; on a CPU, which can compute in both."""

import math
from copy import deepcopy

import pytest
import torch
from small_training import DATA, pretrained

from strategies import Strategy
from trainers import ImageData, ModelSource, Preprocessing, Trainer, Weights, choose_device, top_of
from trainers.data.split import ResidentSplit

BF16, FP16 = choose_device("cpu", "bf16"), choose_device("cpu", "fp16")
SIDE = 32


def scenes(task: str) -> ImageData:
    """Four grey pictures with a bright square each: of a class by its pixels, or by its box."""
    pixels = torch.full((4, 3, SIDE, SIDE), 60, dtype=torch.uint8)
    pixels[:, :, 8:24, 8:24] = 200
    if task == "segmentation":
        targets = torch.zeros(4, SIDE, SIDE, dtype=torch.uint8)
        targets[:, 8:24, 8:24] = 1
    else:
        targets = torch.tensor([[[8.0, 8, 24, 24, 1]]] * 4)
    splits = {name: ResidentSplit(targets, list("abcd"), pixels, torch.arange(4)) for name in ("train", "val", "test")}
    how = Preprocessing(SIDE)
    names = dict.fromkeys(splits, "0" * 32)
    return ImageData(
        task,
        ("dark", "bright"),
        **splits,
        fingerprint=task,
        contents=names,
        skipped=(),
        duplicates=(),
        source="scenes",
        preprocessing=how,
    )


@pytest.mark.parametrize(
    ("task", "decoder"),
    [
        *(("segmentation", name) for name in ("unet", "fpn", "deeplabv3plus", "fcn")),
        *(("detection", name) for name in ("faster_rcnn", "retinanet", "fcos")),
    ],
)
def test_every_decoder_trains_and_predicts_in_bf16(task, decoder):
    weights = Weights("none", "random", None)
    source = ModelSource("test_resnet", weights, 2, SIDE, top=top_of(task, decoder, 2, SIDE))
    loss = {"segmentation": "cross_entropy", "detection": "detector"}[task]
    trainer = Trainer(source, scenes(task), Strategy(loss=loss, batch_size=4, epochs=1, lr=1e-3), 0, BF16)
    (result,) = trainer
    assert math.isfinite(result.metrics["train_loss"])
    assert trainer.look() is not None


def test_delta_is_zero_at_the_start_in_the_format_of_the_training():
    losses = []
    for delta in (0.0, 1.0):
        strategy = Strategy(delta=delta, batch_norm="frozen_stats", batch_size=32, epochs=1)
        trainer = Trainer(pretrained("test_resnet"), DATA, strategy, 0, BF16)
        trainer._batches.turn_to(0)
        opened = trainer._open_epoch()
        losses.append(trainer._gradients.compute(trainer._batches.show(next(opened.batches))).item())
    assert losses[0] == losses[1]


def test_batch_norm_is_refitted_for_swa_in_the_format_of_the_training():
    trainer = Trainer(pretrained("test_resnet"), DATA, Strategy(swa_epochs=1, batch_size=32, epochs=1), 0, BF16)
    seen = set()
    trainer.model.get_submodule("bn1").register_forward_pre_hook(lambda module, inputs: seen.add(inputs[0].dtype))
    next(trainer)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("fields", [{}, {"sam_rho": 0.05, "clip_grad": 1.0, "lr_by": "gradient"}])
def test_fp16_trains_as_fp32_does_up_to_rounding(fields):
    strategy = Strategy(batch_size=32, epochs=2, lr=1e-2, optimizer="sgd", batch_norm="frozen_stats", **fields)
    found, expected = (
        [result.metrics["train_loss"] for result in Trainer(pretrained("test_resnet"), DATA, strategy, 0, device)]
        for device in (FP16, choose_device("cpu"))
    )
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("sam_rho", [0.0, 0.05])
def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_falls(sam_rho):
    strategy = Strategy(batch_size=32, epochs=1, optimizer="sgd", batch_norm="frozen_stats", sam_rho=sam_rho)
    trainer = Trainer(pretrained("test_resnet"), DATA, strategy, 0, FP16)
    scale = trainer._gradients.scale
    scale.load_state_dict(scale.state_dict() | {"scale": 2.0**40})
    before = trainer.weights()
    next(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights().items())
    assert scale.state_dict()["scale"] == 2.0**38


def test_a_training_in_fp16_resumes_with_its_scale():
    strategy = Strategy(depth=0, batch_size=32, epochs=2)
    trainer = Trainer(pretrained("test_resnet"), DATA, strategy, 0, FP16)
    trainer._gradients.scale.load_state_dict(trainer._gradients.scale.state_dict() | {"scale": 8.0})
    next(trainer)
    state = deepcopy(trainer.state_dict())
    resumed = Trainer(pretrained("test_resnet"), DATA, strategy, 0, FP16)
    resumed.load_state_dict(state)
    assert resumed._gradients.scale.state_dict()["scale"] == 8.0
    expected = next(trainer).metrics["train_loss"]
    assert next(resumed).metrics["train_loss"] == pytest.approx(expected)
