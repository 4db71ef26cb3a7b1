"""Low-rank updates of frozen weights (LoRA), and folding them back into a plain timm model."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import layer as peft_layers
from timm.layers import Conv2dSame, register_notrace_module  # type: ignore[attr-defined]
from torch import Tensor, nn

from strategies.errors import ConfigError, nearest

#: Exact types: a subclass that changes its weight in the forward pass, such as StdConv2d, cannot fold an update in.
_ADAPTABLE = (nn.Linear, nn.Conv2d, Conv2dSame)

_ADAPTER = "default"

# These must be leaves of torch.fx, as the layers that they replace are.
register_notrace_module(peft_layers.Conv2d)


@register_notrace_module
class LoraLinear(peft_layers.Linear):
    """Peft's linear layer, with the updated weight as its ``weight``.

    The attention of BEiT, EVA and Swin v2 reads the weight of ``qkv`` without calling the layer. Peft's own layer
    returns the frozen weight, so the update would get no gradient and have no effect.
    """

    @property
    def weight(self) -> Tensor:
        """The frozen weight plus its update, (out, in) float, without dropout."""
        base = cast(Tensor, self.base_layer.weight)
        delta: Tensor = self.get_delta_weight(_ADAPTER)
        return (base + delta).to(base.dtype)


def add_lora(model: nn.Module, modules: Iterable[str], rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Add a low-rank update to linear layers and ungrouped convolutions of a timm model, in place.

    Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022. A weight W of (out, in) becomes
    W + alpha / rank * B A with A of (rank, in) and B of (out, rank). A convolution of kernel k has A of
    (rank, in, k, k) and B of (out, rank, 1, 1). B starts at zero, so the model's outputs stay as they are; A is drawn
    from torch's global CPU generator, in the order of the model's modules. The paper adapts attention only; this
    function adapts every layer that is named.

    The model's old parameters keep their ``requires_grad``, and the new ones (:func:`lora_params`) require gradients:
    the plan decides whether an adapted layer's own weight is frozen, as in the paper. The old parameters stay the same
    objects, but those of adapted layers get new names, with ``base_layer`` in them. The head and the blocks stay the
    same, except that the blocks include their updates.

    Args:
        model: A timm classifier without low-rank updates.
        modules: Names of modules that may be updated, such as ``modules`` of the trained blocks. Other kinds of layers
            and the classifier are skipped; if nothing is left, the model stays as it is.
        rank: At least 1.
        alpha: Above 0; the update's factor is ``alpha / rank``.
        dropout: Share in [0, 1) of an adapted layer's inputs that its update does not see in training.

    Raises:
        ConfigError: A number is out of its range, a module does not exist, or the model has low-rank updates already.
    """
    _check_numbers(rank, alpha, dropout)
    if lora_params(model):
        raise ConfigError(f"model {type(model).__name__} has low-rank updates already")
    asked = tuple(modules)
    targets = _adaptable(model, asked)
    if not targets:
        return  # for instance, the block is a single normalisation
    required = [(param, param.requires_grad) for param in model.parameters()]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only divided by the rank
        lora_dropout=dropout,
        # A list would also match ends of names: the stem's conv1 would match every block's conv1.
        target_modules="|".join(re.escape(name) for name in targets),
    )
    inject_adapter_in_model(config, model, _ADAPTER)
    for _, layer in _adapted(model):
        _mend(layer)
    # Peft freezes all old parameters, the classifier included.
    for param, requires_grad in required:
        param.requires_grad_(requires_grad)


def lora_params(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of a model's low-rank updates; empty before :func:`add_lora`."""
    return frozenset(f"{name}.{part}.{_ADAPTER}.weight" for name, _ in _adapted(model) for part in ("lora_A", "lora_B"))


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model as it was before :func:`add_lora`, with the updates folded into the weights.

    It fits the timm model of that name: entries, order, shapes, dtypes and device are the same, and in eval mode so are
    the outputs, up to rounding of the weights. As in ``state_dict()``, entries without an update share the model's
    memory. The model itself is not changed.
    """
    layers = dict(_adapted(model))
    merged: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        owner, _, entry = key.partition(".base_layer.")
        if owner in layers and entry:
            merged[f"{owner}.{entry}"] = _folded(layers[owner]) if entry == "weight" else tensor
        elif key.partition(".lora_")[0] not in layers:
            merged[key] = tensor
    return merged


def _check_numbers(rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise ConfigError(f"rank: {rank!r} is below 1")
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha: {alpha!r} is not a number above 0")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout: {dropout!r} is not in [0, 1)")


def _adaptable(model: nn.Module, names: Iterable[str]) -> list[str]:
    known = dict(model.named_modules())
    classifier = cast(Any, model).get_classifier()
    heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
    passed_over = {id(module) for head in heads for module in head.modules()}
    found = []
    for name in names:
        if name not in known:
            raise ConfigError(f"{name!r} is no module of {type(model).__name__}; {nearest(name, known)}")
        module = known[name]
        if type(module) in _ADAPTABLE and getattr(module, "groups", 1) == 1 and id(module) not in passed_over:
            found.append(name)
    return found


def _adapted(model: nn.Module) -> Iterator[tuple[str, peft_layers.LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, peft_layers.LoraLayer):
            yield name, module


def _mend(layer: Any) -> None:
    """Correct where peft (0.21) differs from the layer that it adapts: weight, dilation and training mode."""
    if isinstance(layer, peft_layers.Linear):
        layer.__class__ = LoraLinear
    else:
        layer.lora_A[_ADAPTER].dilation = layer.base_layer.dilation
    layer.train(layer.base_layer.training)


def _folded(layer: Any) -> Tensor:
    base: Tensor = layer.base_layer.weight.detach()
    # In double on the CPU: TF32 on a GPU would lose digits, and not every device has doubles.
    wide = base.cpu().double()
    down, up = (part[_ADAPTER].weight.detach().cpu().double() for part in (layer.lora_A, layer.lora_B))
    # A convolution followed by a 1x1 convolution is a product of matrices too.
    delta = (up.flatten(1) @ down.flatten(1)).view_as(wide) * layer.scaling[_ADAPTER]
    return cast(Tensor, (wide + delta).to(base))
