"""Fresh models for trials: one pretrained body read once, a new classifier each time."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import timm
import torch
from torch import Tensor, nn

from strategies import ConfigError, WeightsError
from trainers.weights import Weights, check_model_name

__all__ = ["ModelSource", "check_model_name", "create_classifier", "parameter_count"]

logger = logging.getLogger(__name__)

_TWIN_SEED = 0
# Official files carry a few tensors that a classifier does not use (a mask token, an auxiliary head).
_TOLERATED_UNUSED = 0.1


class ModelSource:
    """Builds the same pretrained model over and over, each time with a classifier drawn anew.

    The weights are fitted to the architecture once, here, by timm's own loading: its checkpoint filters, its
    resizing of position embeddings to ``image_size``.

    Args:
        name: A timm model, with or without a pretrained tag.
        weights: What :func:`trainers.weights.find_weights` found.
        num_classes: Outputs of the classifier.
        image_size: Height and width of the images in pixels.

    Raises:
        ConfigError: timm knows no such model, or the model cannot take images of this size.
        WeightsError: The weights do not fit the model.
    """

    def __init__(self, name: str, weights: Weights, num_classes: int, image_size: int) -> None:
        check_model_name(name)
        self.name = name
        self.weights = weights
        self.num_classes = num_classes
        self.image_size = image_size
        twin = self._create_twin()
        self.mean: tuple[float, float, float] = _three(twin.pretrained_cfg["mean"])
        self.std: tuple[float, float, float] = _three(twin.pretrained_cfg["std"])
        self._template = None if weights.state_dict is None else self._fit(weights.state_dict, twin)

    def build(self, seed: int) -> nn.Module:
        """A fresh model on the CPU, in float32 and training mode; the global random state stays as it was.

        The pretrained part is equal in every build. The classifier is always drawn from ``seed``, also where
        the weights bring one for as many classes: a trial starts from the body and its head is always new, so
        that trials stay comparable whatever the weights. Without weights all is drawn from ``seed``.
        """
        model: Any = self._create(seed) if self._template is None else deepcopy(self._template)
        if self._template is not None:
            with _seeded(seed):
                model.reset_classifier(self.num_classes)
        assert isinstance(model, nn.Module)
        return model

    def _create(self, seed: int, **how: Any) -> Any:
        with _seeded(seed):
            return create_classifier(self.name, self.num_classes, self.image_size, **how)

    def _create_twin(self) -> Any:
        """The model without weights, after a look at whether it can classify an image of this size."""
        try:
            twin = self._create(_TWIN_SEED)
            with torch.inference_mode():
                logits = twin.eval()(torch.zeros(1, 3, self.image_size, self.image_size))
        except Exception as error:  # timm's architectures refuse sizes by assertions, RuntimeError, ValueError ...
            raise ConfigError(
                f"data.image_size: {self.name} cannot take images of {self.image_size} px: {_head(error)}"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (1, self.num_classes):
            raise ConfigError(f"model.name: {self.name} is no classifier: it does not answer with one row of scores")
        return twin.train()

    def _fit(self, state_dict: Mapping[str, Tensor], twin: Any) -> Any:
        # A number of classes no model has makes timm leave the file's classifier out, whatever its size.
        overlay = {"state_dict": dict(state_dict), "num_classes": -1}
        try:
            model = self._create(_TWIN_SEED, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:  # a checkpoint filter may stumble over a foreign file in any way
            raise self._unfit(_head(error)) from error
        # timm keeps the overlay, tensors included, in the model's configuration.
        model.pretrained_cfg = model.default_cfg = twin.pretrained_cfg
        self._check_loaded(model, twin, state_dict)
        return model

    def _check_loaded(self, model: Any, twin: Any, state_dict: Mapping[str, Tensor]) -> None:
        """Prove that the file filled the model; timm does not ask once the numbers of classes differ."""
        loaded, random = model.state_dict(), twin.state_dict()
        wanted = _weight_names(model)
        # The name clears a tensor that starts as a constant and is that same constant in the file.
        missing = [name for name in wanted if name not in state_dict and torch.equal(loaded[name], random[name])]
        if missing:
            raise self._unfit(f"{len(missing)} of {len(wanted)} weight tensors missing, first: {missing[0]}")
        if not all(name in state_dict for name in wanted):
            return  # timm's filter renamed the file's tensors, so names do not tell which were used
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


def create_classifier(name: str, num_classes: int, image_size: int, **how: Any) -> nn.Module:
    """Timm's model of that name, for images of ``image_size`` pixels where its architecture depends on that.

    Args:
        name: A timm model.
        num_classes: Outputs of the classifier.
        image_size: Height and width of the images in pixels.
        how: Further arguments of ``timm.create_model``.
    """
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        how["img_size"] = image_size
    model = timm.create_model(name, num_classes=num_classes, **how)
    assert isinstance(model, nn.Module)
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of the model's parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def _weight_names(model: Any) -> list[str]:
    """What a file must bring: weights of two and more axes outside the classifier, running statistics."""
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
    """Draw from ``seed`` on the CPU and leave every generator as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the accelerators too, whose state is not forked here.
        torch.default_generator.manual_seed(seed)
        yield


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _head(error: Exception) -> str:
    """The first lines of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400] or type(error).__name__
