"""Small data sets and models for tests that train."""

import math
import random
from collections.abc import Callable

import timm
import torch
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer, _create_swin_transformer

from trainers import ImageData, ModelSource, Preprocessing, Trainer, Weights, choose_device
from trainers.data.split import ResidentSplit

DEVICE = choose_device("cpu")


def split(count: int, seed: int) -> ResidentSplit:
    """Noise, bright in the upper half for class 0 and in the lower for class 1."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    pixels = torch.randint(0, 100, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for row, target in enumerate(targets):
        pixels[row, :, 16 * target : 16 * target + 16] += 100
    return ResidentSplit(targets, [str(i) for i in range(count)], pixels, torch.arange(count))


def halves(task: str = "classification", retarget: Callable[[torch.Tensor], torch.Tensor] = lambda k: k) -> ImageData:
    """The same images for any task; ``retarget`` makes targets of the bright half's index."""
    splits = {name: split(count, seed) for name, count, seed in (("train", 64, 0), ("val", 32, 1), ("test", 32, 2))}
    for part in splits.values():
        part.targets = retarget(part.targets)
    return ImageData(
        task=task,
        classes=("up", "down"),
        **splits,
        fingerprint="0" * 16,
        contents=dict.fromkeys(splits, "0" * 32),
        skipped=(),
        duplicates=(),
        source="halves",
        preprocessing=Preprocessing(32),
    )


def lopsided() -> ImageData:
    """Nine images of one class for each image of the other."""
    data = halves()
    data.train.targets = (torch.arange(64) % 10 == 0).long()
    return data


DATA = halves()


@register_model
def swin_of_tests(pretrained: bool = False, **how) -> SwinTransformer:
    """A Swin smaller than any that timm has."""
    small = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
    small |= {"img_size": 32, "strict_img_size": False}
    return _create_swin_transformer("swin_tiny_patch4_window7_224", pretrained, **small | how)


def pretrained(name: str) -> ModelSource:
    """A model of that name from weights that bring a classifier of seven classes."""
    torch.manual_seed(0)
    how = {"img_size": 32} if "vit" in name else {}
    state = timm.create_model(name, num_classes=7, **how).state_dict()
    source = ModelSource(name, Weights("file:tests", "0" * 16, state), 2, 32)
    assert source.pretrained_classifier() is not None
    return source


class Dice:
    """Answers suggestions at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return self._random.randrange(low, high + 1, step)

    def suggest_float(self, name, low, high, *, step=None, log=False):
        return math.exp(self._random.uniform(math.log(low), math.log(high))) if log else self._random.uniform(low, high)

    def suggest_categorical(self, name, choices):
        return self._random.choice(choices)


def short_of_memory(trainer: Trainer, images: int) -> Trainer:
    """The trainer, whose model from now on finds no memory for more images at once in a step."""
    forward = trainer._gradients._forward

    def short(model, inputs, cut, parts=1):
        if len(inputs) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs, cut, parts)

    trainer._gradients._forward = short
    return trainer
