"""A zoo: a collection of image classifiers, and everything that the rest of the project asks of such a collection.

A zoo is one file beside this one. The models that it makes are plain torch modules with four methods, those of timm's
classifiers: ``get_classifier()``, ``reset_classifier(num_classes)``, ``group_matcher(coarse)``, which divides
parameters and modules into blocks, and ``no_weight_decay()`` where some parameters are not decayed.
"""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from strategies import ConfigError, nearest
from trainers.hub import Progress

#: Mean and standard deviation of the pixels of ImageNet in 0 ... 1: red, green, blue.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Each file has a ZOO. They are imported when a model of theirs is asked for, since each takes a library with it.
_FILES = {
    "timm": "trainers.models.timm_zoo",
    "torchvision": "trainers.models.torchvision_zoo",
    "transformers": "trainers.models.transformers_zoo",
    "module": "trainers.models.module_zoo",
}
#: The zoo of names without ``ZOO:``.
_DEFAULT = "timm"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a model is made for: outputs, height and width of the images in pixels, channels."""

    num_classes: int
    image_size: int
    in_chans: int = 3


@dataclass(frozen=True, slots=True)
class Facts:
    """How images are given to a model.

    Args:
        mean: Mean of red, green and blue in 0 ... 1 by which the model's images are normalised.
        std: The standard deviation in the same order.
        image_size: Side in pixels of the images that the published weights were trained on.
        fixed_size: Whether a model that is made for one size takes no other.
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    image_size: int = 224
    fixed_size: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of a zoo's list: its name, and its parameters and top-1 accuracy on ImageNet (0 to 1) where known."""

    name: str
    parameters: int | None = None
    accuracy: float | None = None


class Zoo:
    """What the rest of the project asks of a collection of classifiers.

    Names are those of the collection, without ``ZOO:``.
    """

    #: What stands before the colon of a name.
    prefix: str

    def check(self, name: str) -> None:
        """Refuse a name that the zoo cannot build.

        Raises:
            ConfigError: There is no such model, or a package is missing; the message names the nearest model, or the
                command that installs the package.
        """
        raise NotImplementedError

    def listed(self) -> Sequence[Listed]:
        """The zoo's models."""
        raise NotImplementedError

    def create(self, name: str, shape: Shape, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
        """A model without weights, drawn from torch's global generator.

        Args:
            name: A model of the zoo.
            shape: What the model is made for.
            drop_rate: Share of features that the head does not see in training.
            drop_path_rate: Largest share of images for which a residual branch is left out in training.

        Raises:
            TypeError: The architecture has no residual branches to leave out.
        """
        raise NotImplementedError

    def load(self, name: str, shape: Shape, state: Mapping[str, Tensor], twin: nn.Module) -> nn.Module:
        """A model with weights: entries renamed, and position embeddings and first convolution adapted to the shape.

        Args:
            name: A model of the zoo.
            shape: What the model is made for.
            state: The weights; their classifier is left out.
            twin: A model of that shape without weights.

        Raises:
            Exception: The weights do not fit; the error may be of any kind, and its message says why.
        """
        raise NotImplementedError

    def facts(self, name: str, source: str = "") -> Facts:
        """How images are given to a model with the weights that ``source`` names."""
        raise NotImplementedError

    def first_weights(self, model: nn.Module) -> Sequence[str]:
        """Names of the weights of the first layers, whose inputs are the image's channels."""
        raise NotImplementedError

    def classifiers(self, model: nn.Module) -> Sequence[str]:
        """Names of the layer or layers that give the scores."""
        raise NotImplementedError

    def published(self, name: str, which: str | None, progress: Progress | None) -> tuple[str, Path]:
        """The file of a model's published weights, from this machine or downloaded, and the source to name it by.

        Args:
            name: A model of the zoo.
            which: One of several sets of weights; None for the zoo's first choice.
            progress: Told of a download.

        Raises:
            HubError: There is no such file, or it cannot be downloaded.
            WeightsError: The model has no set of that name.
        """
        raise NotImplementedError

    def code(self, name: str) -> Path | None:
        """The user's file without which the model cannot be built; a logged model takes a copy along."""
        return None

    def moved(self, name: str, code: Path) -> str:
        """The name of the same model whose file of :meth:`code` lies elsewhere."""
        return name

    def packages(self, name: str) -> Sequence[str]:
        """Packages that build the model, besides those that every logged model needs."""
        return ()


def zoo_of(name: str) -> tuple[Zoo, str]:
    """The zoo of a model, and the model's name in it.

    Args:
        name: ``ZOO:NAME``, or a name of timm's.

    Raises:
        ConfigError: There is no such zoo.
    """
    prefix, separator, rest = name.partition(":")
    if not separator:
        prefix, rest = _DEFAULT, name
    return zoo_named(prefix), rest


def zoo_named(prefix: str) -> Zoo:
    """The zoo of that name.

    Raises:
        ConfigError: There is no such zoo.
    """
    if prefix not in _FILES:
        raise ConfigError(f"model.name: there is no zoo {prefix!r}; {nearest(prefix, _FILES)}")
    zoo = importlib.import_module(_FILES[prefix]).ZOO
    assert isinstance(zoo, Zoo)
    return zoo


def check_model_name(name: str) -> None:
    """Refuse a name that its zoo cannot build, and suggest the nearest name that it can.

    Raises:
        ConfigError: The zoo, the architecture or its pretrained tag is unknown, or a package is missing.
    """
    zoo, own = zoo_of(name)
    zoo.check(own)


def create_classifier(
    name: str, num_classes: int, image_size: int, in_chans: int = 3, code: Path | None = None, **how: Any
) -> nn.Module:
    """The model of that name without weights, made for images of ``image_size`` pixels.

    Args:
        name: A model, with its zoo where that is not timm.
        num_classes: Outputs of the classifier.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        code: The place of the file of :meth:`Zoo.code` where it is not the place in the name.
        how: Further arguments of :meth:`Zoo.create`.
    """
    zoo, own = zoo_of(name)
    return zoo.create(own if code is None else zoo.moved(own, code), Shape(num_classes, image_size, in_chans), **how)


def digest_of_file(path: Path) -> str:
    """16 hexadecimal digits over a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
