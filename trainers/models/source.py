"""Fresh models for trials: the pretrained body is read once, the classifier is new each time."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from strategies import ConfigError, WeightsError, split_blocks
from trainers.models.dense import Top, dress
from trainers.models.weights import Weights
from trainers.models.zoo import Shape, digest_of_file, zoo_of

logger = logging.getLogger(__name__)

_RGB = 3
_TWIN_SEED = 0
# Official files carry a few tensors that a classifier does not use (a mask token, an auxiliary head).
_TOLERATED_UNUSED = 0.1


class ModelSource:
    """Builds the same pretrained model over and over, each time with a classifier drawn anew.

    The weights are fitted to the architecture once, here, by the loading of the model's zoo: names of an earlier time,
    position embeddings for ``image_size``, a first convolution for ``in_chans``. A file that was saved from a model
    with ``in_chans`` channels is not adapted.

    ``mean`` and ``std`` normalise images with pixels in 0 ... 1, a number a channel: the model's own for red, green and
    blue; their average for one channel; red, green, blue, red, ... in turn for any other number. ``num_blocks`` is the
    number of blocks that can be unfrozen.

    Args:
        name: A model, with its zoo where that is not timm: ``resnet50``, ``torchvision:resnet50``.
        weights: From :func:`trainers.models.weights.find_weights`.
        num_classes: Outputs of the classifier.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        top: The layers on the model's feature maps; None for a classifier (:mod:`trainers.models.dense`).

    Raises:
        ConfigError: There is no such model, the model cannot take images of this size and so many channels, gives no
            feature maps where they are needed, or its blocks are not known.
        WeightsError: The weights do not fit the model.
    """

    def __init__(
        self,
        name: str,
        weights: Weights,
        num_classes: int,
        image_size: int,
        in_chans: int = 3,
        top: Top | None = None,
    ) -> None:
        self._zoo, self._own_name = zoo_of(name)
        self._zoo.check(self._own_name)
        self.name = name
        self.weights = weights
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self._top = top
        twin = self._create_twin()
        self._facts = self._zoo.facts(self._own_name, weights.source)
        self.mean = _per_channel(self._facts.mean, in_chans)
        self.std = _per_channel(self._facts.std, in_chans)
        self._template = None if weights.state_dict is None else self._fit(weights.state_dict, twin)
        self.num_blocks = len(split_blocks(self._dressed(twin, _TWIN_SEED)))

        #: Heads that were fitted before a fine-tuning, by all that they depend on; trials share them.
        self.probes: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        #: For Co-Tuning, the relationship between the weights' classes and a data set's.
        self.relationships: dict[tuple[Any, ...], Tensor] = {}

    @property
    def usual_size(self) -> int:
        """Side in pixels of the images that the model's published weights were trained on."""
        return self._facts.image_size

    @property
    def code(self) -> Path | None:
        """The user's file that makes the model; None for a model of a library."""
        return self._zoo.code(self._own_name)

    @property
    def packages(self) -> Sequence[str]:
        """Packages that build the model, besides those that every model needs."""
        return self._zoo.packages(self._own_name)

    @cached_property
    def architecture(self) -> str:
        """Equal for models that compute the same with the same weights: the name, and a digest of the user's file."""
        return self.name if self.code is None else f"{self.name} {digest_of_file(self.code)}"

    def fit_outputs(self, num_classes: int, top: Top | None) -> None:
        """Change the number of classes, since weights are checked before images are read.

        Args:
            num_classes: Outputs of the classifier.
            top: As for the class itself.
        """
        self.num_classes, self._top = num_classes, top
        if self._template is not None:
            with _seeded(_TWIN_SEED):
                self._template.reset_classifier(num_classes)

    def build(self, seed: int, *, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
        """A fresh model on the CPU, in float32 and training mode; the global random state stays as it was.

        The pretrained part is equal in every build. The classifier is always drawn from ``seed``, even if the weights
        bring one for as many classes, so that trials stay comparable for all weights. Without weights the whole model
        is drawn from ``seed``.

        Args:
            seed: Draws the parts that are not pretrained.
            dropout: Share of features that the head does not see in training.
            drop_path: Largest share of images for which a residual branch is left out in training.

        Raises:
            ConfigError: The architecture has no residual branches to leave out.
        """
        how = ({"drop_rate": dropout} if dropout > 0 else {}) | ({"drop_path_rate": drop_path} if drop_path > 0 else {})
        if self._template is None:
            model: Any = self._create_dropping(seed, how)
        elif not how:
            model = deepcopy(self._template)
        else:
            model = self._create_dropping(seed, how)
            model.load_state_dict(self._template.state_dict(), strict=True)
        if self._template is not None and self._top is None:
            with _seeded(seed):
                model.reset_classifier(self.num_classes)
        return self._dressed(model, seed)

    def _dressed(self, model: Any, seed: int) -> nn.Module:
        """The classifier, or the dense model made of it, whose new parts are drawn from ``seed``."""
        if self._top is not None:
            with _seeded(seed):
                model = dress(model, self.image_size, self.in_chans, self._top)
        assert isinstance(model, nn.Module)
        return model

    def _create_dropping(self, seed: int, how: dict[str, float]) -> Any:
        try:
            return self._create(seed, **how)
        except TypeError as error:
            raise ConfigError(f"strategy.drop_path: {self.name} has no residual branches to leave out") from error

    def can_drop_path(self) -> bool:
        """Whether the architecture takes a rate of dropped residual branches."""
        try:
            with torch.device("meta"):
                self._zoo.create(self._own_name, self._shape, drop_path_rate=0.1)
        except TypeError:
            return False
        return True

    def takes(self, size: int) -> bool:
        """Whether the model takes images of ``size`` x ``size`` pixels, besides its own size."""
        if size == self.image_size:
            return True
        if self._top is not None:
            return False
        if self._facts.fixed_size:
            return False
        model = self.build(_TWIN_SEED).eval()
        try:
            with torch.inference_mode():
                model(torch.zeros(1, self.in_chans, size, size))
        except Exception:  # architectures refuse sizes by assertions, RuntimeError, ValueError ...
            return False
        return True

    def pretrained_classifier(self) -> tuple[Tensor, Tensor] | None:
        """Weight (S, D) and bias (S,) of the classifier in the pretrained weights; None if they have no classifier."""
        if self._top is not None:
            return None
        names = [f"{name}.weight" for name in self._zoo.classifiers(self._create_twin())]
        state = self.weights.state_dict or {}
        weights = [name for name in names if name in state and state[name].flatten(1).shape[0] > 1]
        if len(weights) != 1:
            return None
        weight = state[weights[0]].flatten(1)
        bias = state.get(weights[0].removesuffix("weight") + "bias")
        return weight, torch.zeros(len(weight)) if bias is None else bias

    def draw_anew(self, model: nn.Module, names: Collection[str], seed: int) -> None:
        """Draw the parameters and buffers of these names from ``seed``, as in a model without weights."""
        drawn = self._dressed(self._create(seed), seed).state_dict()
        model.load_state_dict({name: tensor for name, tensor in drawn.items() if name in names}, strict=False)

    @property
    def _shape(self) -> Shape:
        return Shape(self.num_classes, self.image_size, self.in_chans)

    def _create(self, seed: int, **how: Any) -> Any:
        with _seeded(seed):
            return self._zoo.create(self._own_name, self._shape, **how)

    def _create_twin(self) -> Any:
        """The model without weights, after a check that it can classify an image of this size."""
        try:
            twin = self._create(_TWIN_SEED)
            with torch.inference_mode():
                logits = twin.eval()(torch.zeros(1, self.in_chans, self.image_size, self.image_size))
        except ConfigError:
            raise
        except Exception as error:  # architectures refuse sizes by assertions, RuntimeError, ValueError ...
            key = "data.image_size" if self.in_chans == _RGB else "data.image_size or model.in_chans"
            shape = f"{self.image_size} px with {self.in_chans} channels"
            raise ConfigError(f"{key}: {self.name} cannot take images of {shape}: {_head(error)}") from error
        if not isinstance(logits, Tensor) or logits.shape != (1, self.num_classes):
            raise ConfigError(f"model.name: {self.name} is no classifier: it does not answer with one row of scores")
        return twin.train()

    def _fit(self, state_dict: Mapping[str, Tensor], twin: Any) -> Any:
        try:
            with _seeded(_TWIN_SEED):
                model = self._zoo.load(self._own_name, self._shape, state_dict, twin)
        except Exception as error:  # a foreign file may raise any error
            raise self._unfit(_head(error)) from error
        self._check_loaded(model, twin, state_dict)
        return model

    def _check_loaded(self, model: Any, twin: Any, state_dict: Mapping[str, Tensor]) -> None:
        """Check that the file filled the model; timm does not check if the numbers of classes differ."""
        first = set(self._zoo.first_weights(twin))
        loaded, random = model.state_dict(), twin.state_dict()
        wanted = _weight_names(model)
        # A tensor that is the same constant in a random model and in the file is not missing.
        missing = [
            name
            for name in wanted
            if torch.equal(loaded[name], random[name]) and not _holds(state_dict, name, loaded[name])
        ]
        if missing and set(missing) <= first & state_dict.keys():
            raise self._unfit(f"its {missing[0]} cannot be adapted to {self.in_chans} channels")
        if missing:
            raise self._unfit(f"{len(missing)} of {len(wanted)} weight tensors missing, first: {missing[0]}")
        if not all(name in state_dict for name in wanted):
            return  # the zoo renamed the file's tensors, so names do not tell which were used
        file_weights = [name for name, tensor in state_dict.items() if tensor.ndim >= 2]
        unused = [name for name in file_weights if name not in loaded]
        if len(unused) > _TOLERATED_UNUSED * len(file_weights):
            raise self._unfit(
                f"it holds {len(unused)} weight tensors that the model lacks, first: {unused[0]}; "
                "is it of another architecture?"
            )
        if unused:
            logger.warning("model.weights: %s: not used: %s", self.weights.source, ", ".join(unused))

    def _unfit(self, reason: str) -> WeightsError:
        return WeightsError(f"model.weights: {self.weights.source} does not fit {self.name}: {reason}")


def parameter_count(model: nn.Module) -> int:
    """Number of the model's parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def _weight_names(model: Any) -> list[str]:
    """Names of the tensors that a file must have: weights of two and more axes outside the classifier, statistics."""
    found = model.get_classifier()
    heads = found if isinstance(found, tuple | list) else (found,)
    classifier = {id(tensor) for head in heads for tensor in (*head.parameters(), *head.buffers())}
    weights = [(name, tensor) for name, tensor in model.named_parameters() if tensor.ndim >= 2]
    statistics = [
        (name, tensor) for name, tensor in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]
    return [name for name, tensor in weights + statistics if id(tensor) not in classifier]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context that draws from ``seed`` on the CPU, and leaves every generator as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also seed the accelerators, whose state is not forked here.
        torch.default_generator.manual_seed(seed)
        yield


def _holds(state_dict: Mapping[str, Tensor], name: str, values: Tensor) -> bool:
    return name in state_dict and torch.equal(state_dict[name].to(values.dtype), values)


def _per_channel(rgb: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """A number for each channel, from those for red, green and blue."""
    if in_chans == 1:
        return (sum(rgb) / len(rgb),)
    return tuple(islice(cycle(rgb), in_chans))


def _head(error: Exception) -> str:
    """The first lines of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400] or type(error).__name__
