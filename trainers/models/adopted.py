"""Any classifier with the methods of timm's: its blocks and its head are found once, and its class gets the methods.

The model keeps its modules, the names of its weights, and its forward pass.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn import functional as F

from strategies import ConfigError
from trainers.models.tree import blocks_by_rule
from trainers.models.zoo import Shape, Zoo

_RGB = 3
_LAYERS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks and the head of a model are.

    Args:
        places: The place of a block, counted from the input, by the names of its modules and parameters.
        head: Name of the module that is the classifier.
    """

    places: Mapping[str, int]
    head: str

    def place(self, name: str) -> float:
        """The place of the block that a parameter or module lies in; infinity for one in no block."""
        while name:
            if name in self.places:
                return self.places[name]
            name = name.rpartition(".")[0]
        return math.inf


class Adopted:
    """The methods that :func:`adopt` adds to a model's class."""

    zoo_layout: Layout
    zoo_drop: float

    def get_classifier(self: Any) -> nn.Module:
        """The module that gives the scores; it is always trained."""
        found: nn.Module = self.get_submodule(self.zoo_layout.head)
        return found

    def reset_classifier(self: Any, num_classes: int) -> None:
        """Draw the classifier anew, with other outputs.

        Args:
            num_classes: The outputs.
        """
        head = self.get_classifier()
        last = _last_layer(head)
        for name, module in list(self.named_modules()):
            if module is last:
                _replace(self, name, _with_outputs(last, num_classes))
        for module in head.modules():
            if module is not last and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.drop_before_head(self.zoo_drop)

    def drop_before_head(self: Any, rate: float) -> None:
        """Let the classifier not see a share of its inputs in training."""
        self.zoo_drop = rate
        if rate > 0:
            self.get_classifier().register_forward_pre_hook(_Drop(rate))

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """A function that gives the place of the block of a name, as timm's functions for groups take it."""
        return self.zoo_layout.place

    def no_weight_decay(self: Any) -> set[str]:
        """Names of tokens, embeddings, tables and scales: of all parameters that are no layer's weight."""
        return {name for name, _ in self.named_parameters() if not name.endswith("weight")}


class _Drop:
    """A hook in front of a layer that drops a share of its inputs in training."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.dropout(inputs[0], self._rate, module.training), *inputs[1:])


def adopt(
    model: nn.Module,
    num_classes: int,
    methods: type = Adopted,
    head: nn.Module | None = None,
    blocks: Sequence[Any] | None = None,
) -> nn.Module:
    """Give a classifier the methods of timm's classifiers, in place.

    Args:
        model: Takes images (B, C, H, W).
        num_classes: Its outputs, by which its head is found.
        methods: The class of the methods, :class:`Adopted` or a subclass of it.
        head: The classifier; by default the last linear layer, or convolution, with so many outputs.
        blocks: The blocks from the input to the head, each a module, a parameter, a name, or a list of them; by default
            they are found by :func:`trainers.models.tree.blocks_by_rule`.

    Raises:
        ConfigError: The head is not found, or a parameter is in no block or in several.
    """
    names = {id(module): name for name, module in model.named_modules() if name}
    names |= {id(param): name for name, param in model.named_parameters()}
    found = _last_layer(model, num_classes) if head is None else head
    if found is None or id(found) not in names or _last_layer(found, num_classes) is None:
        raise ConfigError(f"no head: the model has no last linear layer or convolution with {num_classes} outputs")
    listed = blocks_by_rule(model, found) if blocks is None else [_names_in(block, names) for block in blocks]
    model.__class__ = _adopted(type(model), methods)  # type: ignore[arg-type]  # a class is hashable
    adopted: Any = model
    adopted.zoo_layout = Layout({name: place for place, block in enumerate(listed) for name in block}, names[id(found)])
    adopted.zoo_drop = 0.0
    if blocks is not None:
        _check_complete(model, found, listed)
    return model


@cache
def _adopted(kind: type, methods: type) -> type:
    """The class with the methods added; its name stays."""
    return type(kind.__name__, (methods, kind), {"__module__": kind.__module__})


def _names_in(block: Any, names: Mapping[int, str]) -> list[str]:
    """The names of what a user lists as one block."""
    if isinstance(block, str):
        if block not in names.values():
            raise ConfigError(f"blocks(): {block!r} is no module or parameter of the model")
        return [block]
    if isinstance(block, nn.Module | nn.Parameter):
        if id(block) not in names:
            raise ConfigError(f"blocks(): a {type(block).__name__} in it is no part of the model")
        return [names[id(block)]]
    if isinstance(block, Sequence):
        return [name for part in block for name in _names_in(part, names)]
    raise ConfigError(f"blocks(): {block!r} is no module, parameter, name or list of them")


def _check_complete(model: nn.Module, head: nn.Module, blocks: Sequence[Collection[str]]) -> None:
    """Refuse blocks that leave a parameter out, or hold one twice."""
    of_head = {id(param) for param in head.parameters()}
    for name, param in model.named_parameters():
        holders = sum(any(f"{name}.".startswith(f"{part}.") for part in block) for block in blocks)
        if id(param) not in of_head and holders != 1:
            where = "several blocks" if holders else "no block"
            raise ConfigError(f"blocks(): the parameter {name} is in {where}")


def _last_layer(model: nn.Module, num_classes: int | None = None) -> nn.Linear | nn.Conv2d | None:
    """The last linear layer or convolution, with so many outputs."""
    fitting = [
        module
        for module in model.modules()
        if isinstance(module, _LAYERS) and num_classes in (None, module.weight.shape[0])
    ]
    return fitting[-1] if fitting else None


def _with_outputs(layer: nn.Module | None, num_classes: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return _conv_like(layer, layer.in_channels, num_classes)
    assert isinstance(layer, nn.Linear), "else it would not have been taken for a head"
    return nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)


def _conv_like(conv: nn.Conv2d, in_chans: int, out_chans: int) -> nn.Conv2d:
    how = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias is not None)
    return nn.Conv2d(in_chans, out_chans, *how, padding_mode=conv.padding_mode)  # type: ignore[arg-type]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first convolution in the order of registration, and its name."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next(found, None)


def take_channels(model: nn.Module, in_chans: int) -> None:
    """Replace the first convolution, which takes red, green and blue, by one that takes other channels."""
    found = first_convolution(model)
    if in_chans != _RGB and found is not None:
        name, conv = found
        _replace(model, name, _conv_like(conv, in_chans, conv.out_channels))


class AdoptingZoo(Zoo):
    """A zoo whose models get their methods from :func:`adopt`."""

    def load(self, name: str, shape: Shape, state: Mapping[str, Tensor], twin: nn.Module) -> nn.Module:
        """The model with the entries that are named as in the model, in fact or after :meth:`renamed`."""
        model: Any = self.create(name, shape)
        wanted, head = model.state_dict(), model.zoo_layout.head
        given = {key: tensor for key, tensor in self.renamed(model, state).items() if not key.startswith(f"{head}.")}
        for key in self.first_weights(model):
            if key in given and given[key].ndim == 4 and given[key].shape[1] == _RGB:
                given[key] = adapt_input_conv(shape.in_chans, given[key])
        fitting = {key: tensor for key, tensor in given.items() if key in wanted}
        for key, tensor in fitting.items():
            if tensor.shape != wanted[key].shape:
                raise ValueError(f"its {key} is {_size(tensor)}, the model's is {_size(wanted[key])}")
        missing = [key for key in _needed(model) if key not in fitting]
        if missing:
            what = f"{len(missing)} weight tensors missing, first: {missing[0]}"
            raise ValueError(f"{what}; is it of another architecture?")
        model.load_state_dict(fitting, strict=False)
        return model  # type: ignore[no-any-return]

    def renamed(self, model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by the names of the model's own, with tables resized for it."""
        return dict(state)

    def first_weights(self, model: nn.Module) -> Sequence[str]:
        """The first convolution's weight."""
        found = first_convolution(model)
        return [] if found is None else [f"{found[0]}.weight"]

    def classifiers(self, model: nn.Module) -> Sequence[str]:
        """The head's last layer, if it is linear."""
        adopted: Any = model
        last = _last_layer(adopted.get_classifier())
        return [name for name, module in model.named_modules() if module is last and isinstance(last, nn.Linear)]


def _needed(model: Any) -> Iterator[str]:
    """Names of the parameters outside the head, and of BatchNorms' statistics."""
    head = f"{model.zoo_layout.head}."
    entries = [name for name, _ in model.named_parameters()]
    entries += [name for name, _ in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return (name for name in entries if not name.startswith(head))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
