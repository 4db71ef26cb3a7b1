"""Models that segment and detect: a timm encoder under a decoder, with the interface of a timm classifier."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from strategies import ConfigError, first_line
from trainers.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Top:
    """The layers that are to stand on an encoder.

    Args:
        make: Makes the layers from the channels and strides of the encoder's maps, the highest resolution first; draws
            from torch's global generator.
        finest_stride: Pixels of the image for each pixel of the finest map that is used.
    """

    make: Callable[[Sequence[int], Sequence[int]], nn.Module]
    finest_stride: int = 1


# Number of maps, evenly over the layers, from an encoder whose maps all have one size, such as a plain ViT.
_EQUAL_MAPS = 4


class DenseModel(nn.Module):
    """An encoder, and layers that make masks or boxes of its feature maps.

    Code that divides, freezes, cuts or plans a timm classifier can use it as such: the encoder's blocks are its blocks,
    and ``top`` is its classifier.

    Args:
        encoder: A timm model without the layers behind its last map.
        indices: The intermediate maps that are used.
        top: Takes the list of maps, (B, C, H, W) each, the highest resolution first. Its module ``decoder`` makes one
            map or several from them, its other modules predict.
    """

    def __init__(self, encoder: Any, indices: Sequence[int], top: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.top = top
        self.pretrained_cfg = encoder.pretrained_cfg
        self._indices = list(indices)

    def forward(self, images: Tensor) -> Any:
        """The outputs of ``top`` for images (B, C, S, S)."""
        maps = self.encoder.forward_intermediates(
            images, indices=self._indices, intermediates_only=True, output_fmt="NCHW"
        )
        return self.top(maps)

    def get_classifier(self) -> nn.Module:
        """The part that is always trained."""
        return self.top

    def decoder_params(self) -> list[str]:
        """Names of the parameters between the encoder and the predicting layers."""
        return [f"top.decoder.{name}" for name, _ in self.top.get_submodule("decoder").named_parameters()]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The encoder's patterns, for names that begin with ``encoder.``."""
        return {name: _prefixed(pattern) for name, pattern in self.encoder.group_matcher(coarse=coarse).items()}

    def no_weight_decay(self) -> set[str]:
        """Names of the encoder's parameters that its authors do not decay."""
        if not hasattr(self.encoder, "no_weight_decay"):
            return set()
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


def top_of(task: str, decoder: str | None, num_classes: int, image_size: int) -> Top | None:
    """The top for a task.

    Args:
        task: A key of :data:`trainers.tasks.TASKS`.
        decoder: One of the task's decoders; None for a task without decoders.
        num_classes: Classes of the data.
        image_size: Height and width of the images in pixels.

    Returns:
        None for a task whose models are timm's classifiers.
    """
    dense = TASKS[task].dense
    if dense is None or decoder is None:
        return None

    def make(channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
        return dense.make_top(decoder, channels, strides, num_classes, image_size)

    return Top(make, dense.finest_stride)


def dress(classifier: Any, image_size: int, in_chans: int, top: Top) -> DenseModel:
    """Make a dense model of a timm classifier, whose own head and last layers are removed.

    Args:
        classifier: The model; it is changed in place.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        top: The layers that are to stand on it.

    Raises:
        ConfigError: The architecture does not give its intermediate maps.
    """
    name = type(classifier).__name__
    try:
        shapes = _map_shapes(classifier, image_size, in_chans)
        indices = _chosen(shapes, image_size // top.finest_stride)
        classifier.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
        # After pruning the model may number its maps anew.
        shapes = [shapes[index] for index in indices]
    except Exception as error:  # timm's architectures lack the methods, or raise errors of any kind
        raise ConfigError(
            f"model.name: {name} does not give the feature maps that masks and boxes need: {first_line(error)}"
        ) from error
    channels = [shape[0] for shape in shapes]
    strides = [max(1, round(image_size / shape[1])) for shape in shapes]
    return DenseModel(classifier, indices, top.make(channels, strides))


@torch.no_grad()
def _map_shapes(classifier: Any, image_size: int, in_chans: int) -> list[tuple[int, ...]]:
    """(C, H, W) of each intermediate map."""
    was_training = classifier.training
    classifier.eval()
    images = torch.zeros(1, in_chans, image_size, image_size)
    maps = classifier.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    classifier.train(was_training)
    return [tuple(one.shape[1:]) for one in maps]


def _chosen(shapes: Sequence[tuple[int, ...]], largest: int) -> list[int]:
    """The last map of each size up to the size ``largest``; a few maps if all maps have one size."""
    last = {shape[1:]: index for index, shape in enumerate(shapes) if shape[1] <= largest}
    if len(last) > 1:
        return sorted(last.values())
    return sorted({round((k + 1) * len(shapes) / _EQUAL_MAPS) - 1 for k in range(_EQUAL_MAPS)} - {-1})


def _prefixed(pattern: Any) -> Any:
    """A timm group's pattern, or list of patterns with their ordinals, for names that begin with ``encoder.``."""
    if pattern is None:
        return None
    if isinstance(pattern, str):
        # timm matches from the beginning anyway, so that the anchors of alternatives can be removed.
        return r"^encoder\.(?:" + re.sub(r"(?<!\[)\^", "", pattern) + ")"
    return [(_prefixed(one), ordinal) for one, ordinal in pattern]
