"""Small models of torchvision's and Transformers' classes, under names of their zoos."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import convnext
from torchvision.models._api import register_model

from trainers import ModelSource, find_weights

SIDE = 32


def _tiny_vit(*, weights: models.ViT_B_16_Weights | None = None, image_size: int = 224, **how) -> nn.Module:
    return models.VisionTransformer(image_size, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, **how)


def _tiny_swin(*, weights: models.Swin_T_Weights | None = None, **how) -> nn.Module:
    return models.SwinTransformer([2, 2], 8, [1, 2], [1, 2], window_size=[4, 4], **how)


def _tiny_convnext(*, weights: models.ConvNeXt_Tiny_Weights | None = None, **how) -> nn.Module:
    settings = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 2)]
    return models.ConvNeXt(settings, stochastic_depth_prob=0.1, **how)


def _tiny_densenet(*, weights: models.DenseNet121_Weights | None = None, **how) -> nn.Module:
    return models.DenseNet(4, (2, 2), 8, bn_size=2, **how)


for _build, _like in (
    (_tiny_vit, "vision_transformer"),
    (_tiny_swin, "swin_transformer"),
    (_tiny_convnext, "convnext"),
    (_tiny_densenet, "densenet"),
):
    # torchvision lists what it has by the module.
    _build.__module__ = f"torchvision.models.{_like}"
    register_model(_build.__name__.removeprefix("_"))(_build)

OF_TORCHVISION = ("tiny_vit", "tiny_swin", "tiny_convnext", "tiny_densenet")

#: Settings of Transformers' configurations.
OF_TRANSFORMERS = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    | {"image_size": SIDE, "patch_size": 8},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    "swin": {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}
    | {"window_size": 4},
}

#: A model of one's own, as a file.
OWN = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                                    nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.layers(x)


class Net(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.score = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.score(self.blocks(self.stem(x)).mean((2, 3)))


build = Net
"""


def name_of(zoo: str, name: str, folder: Path) -> str:
    """The model's name in ``model.name``; what a folder is needed for is written there."""
    if zoo == "torchvision":
        return f"torchvision:{name}"
    if zoo == "module":
        (folder / "own.py").write_text(OWN)
        return f"module:{folder / 'own.py'}:build"
    from transformers import AutoConfig, AutoModelForImageClassification

    place = folder / name
    if not place.exists():
        config = AutoConfig.for_model(name, **OF_TRANSFORMERS[name], num_labels=7)
        torch.manual_seed(1)
        AutoModelForImageClassification.from_config(config).save_pretrained(place)
    return f"transformers:{place}"


def weights_of(source: ModelSource, folder: Path) -> Path:
    """A file with weights for the model as after some training: with none that a fresh model has."""
    torch.manual_seed(3)
    state = {
        key: tensor + 0.02 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor
        for key, tensor in source.build(5).state_dict().items()
    }
    file = folder / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    return file


def source_of(zoo: str, name: str, folder: Path) -> ModelSource:
    """A small model from a file of weights, for two classes."""
    full = name_of(zoo, name, folder)
    fresh = ModelSource(full, find_weights(full, ["none"]), 2, SIDE)
    return ModelSource(full, find_weights(full, [str(weights_of(fresh, folder))]), 2, SIDE)
