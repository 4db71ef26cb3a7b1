"""Penalties on the loss that keep a model near its start; each is a scalar that is not yet weighted."""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strategies.errors import ConfigError, TrialError, nearest
from strategies.model import Block, split_blocks

#: Number of feature maps that :func:`map_modules` chooses in a model without stages.
_MAPS = 4


def start_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of parameters in their present state, for :func:`l2_sp`.

    Args:
        model: The model before its first step.
        names: Names of its trained parameters, without the head's.
    """
    params = dict(model.named_parameters())
    return {name: params[name].detach().clone() for name in names}


def l2_sp(params: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    """Half the squared distance of the body's parameters from their start, summed over all of them.

    Li, Grandvalet, Davoine: Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018. The
    paper replaces weight decay by it, except on the new head; here weight decay is a separate choice.

    Args:
        params: The model's parameters by name; those that are not in ``start`` do not count.
        start: From :func:`start_of`.

    Returns:
        () float; 0 for an empty ``start``.
    """
    # mse_loss keeps no difference for the backward pass, and needs far fewer kernels than the written-out formula.
    sums = [F.mse_loss(params[name], tensor, reduction="sum") for name, tensor in start.items()]
    return torch.stack(sums).sum() / 2 if sums else torch.zeros(())


def map_modules(model: nn.Module, trained: Collection[str]) -> list[str]:
    """Names of modules whose outputs :class:`Delta` may compare: for most models the last block of each stage.

    Blocks with the same parent module make a stage. A model with fewer than three stages (transformers) has its
    blocks at each quarter of the depth instead. Modules before the first trained block are left out: their outputs
    cannot change. If that leaves none, because only the layers behind the last stage are trained, the last of these
    layers is taken.

    Args:
        model: A timm classifier.
        trained: Names of the parameters that are trained in some epoch.

    Returns:
        Names in the order from the input to the head; empty only if no block has a trained parameter.

    Raises:
        ConfigError: The model's blocks are unknown.
    """
    body = split_blocks(model).body
    first = next((i for i, block in enumerate(body) if any(name in trained for name in block.params)), None)
    if first is None:
        return []
    outputs = _block_modules(model, body)
    parents = {_parent(name) for name in outputs}
    last_of_stage: dict[str, str] = {}
    for name in outputs:
        # A parent that holds other blocks' parents holds stages, so this block is a stage of its own.
        holds_stages = any(other.startswith(f"{_parent(name)}.") for other in parents)
        last_of_stage[name if holds_stages else _parent(name)] = name
    chosen = list(last_of_stage.values())
    if len(chosen) < 3:
        quarters = {math.ceil(len(outputs) * k / _MAPS) - 1 for k in range(1, _MAPS + 1)} if outputs else set()
        chosen = [list(outputs)[end] for end in sorted(quarters)]
    return [name for name in chosen if outputs[name] >= first] or [_parent(body[-1].params[-1])]


def _block_modules(model: nn.Module, body: Sequence[Block]) -> dict[str, int]:
    """Names of the modules of several layers that are blocks, with the blocks' positions."""
    modules = dict(model.named_modules())
    named = {_common_module(block.params): index for index, block in enumerate(body)}
    named = {name: index for name, index in named.items() if name and any(modules[name].children())}
    # A module around several blocks, such as a stage with its downsampling, is left out: its last block stands for it.
    inner = {n: index for n, index in named.items() if not any(other.startswith(f"{n}.") for other in named)}
    # Stem and final layers lie directly in the model; other blocks lie in a container.
    return {name: index for name, index in inner.items() if _parent(name)} or inner


def _common_module(params: Iterable[str]) -> str:
    """The innermost module that holds all of these parameters; empty for the model itself."""
    paths = zip(*(name.split(".")[:-1] for name in params), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, paths))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


class FeatureMaps:
    """Keeps the outputs of chosen modules in a model's latest forward pass; passes in inference mode do not count.

    Args:
        model: The model; each of the modules gets a forward hook.
        modules: Names of the modules.

    Raises:
        ConfigError: The model has no module of such a name; in a forward pass: an output is not a tensor.
    """

    def __init__(self, model: nn.Module, modules: Iterable[str]) -> None:
        self._modules = tuple(modules)
        self._maps: dict[str, Tensor] = {}
        known = dict(model.named_modules())
        for name in self._modules:
            if name not in known:
                raise ConfigError(f"{name!r} is no module of {type(model).__name__}; {nearest(name, known)}")
            known[name].register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(f"module {name!r} returns {type(output).__name__}, not a tensor that can be compared")
        if not torch.is_inference_mode_enabled():
            self._maps[name] = output

    def take(self) -> dict[str, Tensor]:
        """The outputs by module name; they are no longer kept here, so that their graph is freed with the step.

        Raises:
            ConfigError: Some module had no forward pass since the last call.
        """
        missing = [name for name in self._modules if name not in self._maps]
        if missing:
            raise ConfigError(f"module {missing[0]!r} took no part in the forward pass, so it has no feature map")
        taken, self._maps = self._maps, {}
        return taken


class Delta:
    """Distance of feature maps from those of the start model on the same images (DELTA).

    Li, Xiong, Wang, Rao, Liu, Huan: DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional
    Networks, ICLR 2019. All filters of a map weigh the same. This is the paper's variant without attention, which needs
    no pass over the data for every filter. A map's term is half the mean square of the differences, not their sum, so
    that a weight means the same for maps and batches of all sizes. Maps of transformers are (N, tokens, D).

    Call :meth:`penalty` after each training forward pass of the model, with the same images.

    Args:
        model: The model before its first step. It is copied; the copy is frozen, in eval mode and never changes.
        modules: Names of the modules whose outputs are compared, for instance from :func:`map_modules`.
        autocast: Makes the context in which the model is trained: in another number format, the start model's maps
            would differ from those of an unchanged model.

    Raises:
        ConfigError: The model has no module of such a name; in a forward pass: an output is not a tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Collection[str],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._autocast = autocast
        self._start = copy.deepcopy(model).requires_grad_(False).eval()
        self._start_maps = FeatureMaps(self._start, modules)
        self._maps = FeatureMaps(model, modules)

    def penalty(self, images: Tensor) -> Tensor:
        """The penalty on the model's latest training forward pass.

        Args:
            images: (N, 3, H, W) float, the inputs of that pass.

        Returns:
            () float32, summed over the maps; 0 if there are none.
        """
        with torch.no_grad(), self._autocast():
            self._start(images)
        maps, start_maps = self._maps.take(), self._start_maps.take()
        terms = [F.mse_loss(maps[name].float(), wanted.float()) for name, wanted in start_maps.items()]
        return torch.stack(terms).sum() / 2 if terms else torch.zeros((), device=images.device)


class Features:
    """Keeps the inputs of a model's classifier in its latest forward pass; passes in inference mode do not count.

    Args:
        model: A timm classifier; its classifier, or the first of several, gets a forward hook.
    """

    def __init__(self, model: nn.Module) -> None:
        self._features: Tensor | None = None
        classifier = cast(Any, model).get_classifier()
        first = classifier[0] if isinstance(classifier, tuple | list) else classifier
        first.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not torch.is_inference_mode_enabled():
            self._features = inputs[0]

    def take(self) -> Tensor:
        """The penultimate features, (N, D) float; no longer kept here, so that their graph is freed with the step."""
        assert self._features is not None, "no forward pass since the last take"
        taken, self._features = self._features, None
        return taken.flatten(1)


def bss(features: Tensor, k: int = 1) -> Tensor:
    """Sum of squares of the smallest singular values of a batch's features (batch spectral shrinkage, BSS).

    Chen, Wang, Fu, Long, Wang: Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe
    Transfer Learning, NeurIPS 2019. Gradients are finite even for zero and repeated singular values. On a GPU the
    decomposition waits for the device.

    Args:
        features: (N, D) float, the penultimate features; there are min(N, D) singular values.
        k: Number of singular values, the smallest first; all if there are fewer. The paper takes 1.

    Returns:
        () float32.

    Raises:
        TrialError: The features are no longer finite.
    """
    try:
        values: Tensor = torch.linalg.svdvals(features.float())
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise TrialError(f"the features' singular values cannot be found: {error}") from error
    return values[-k:].square().sum()


def co_tuning(source_logits: Tensor, targets: Tensor, relationship: Tensor) -> Tensor:
    """Cross entropy of the source classifier's output against the source classes that belong to the targets.

    You, Kou, Long, Wang: Co-Tuning for Transfer Learning, NeurIPS 2020.

    Args:
        source_logits: (N, S) float, outputs of the pretrained classifier for the current features of the N images.
        targets: (N,) int64, or (N, T) float shares of the classes, as mixed images have.
        relationship: (T, S) float, from :func:`learn_relationship`.

    Returns:
        () float32, mean over images.
    """
    wanted = targets @ relationship if targets.is_floating_point() else relationship[targets]
    return F.cross_entropy(source_logits.float(), wanted)


def learn_relationship(source_logits: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """P(source class | target class) from the pretrained model's outputs on the training images, for Co-Tuning.

    This is the paper's direct way: the mean of the source probabilities over each target class's images. It needs no
    training, unlike the reverse way, which fits a classifier from source probabilities to targets. The probabilities
    are not calibrated as in the paper: that needs images of the source classes.

    Args:
        source_logits: (N, S) float, outputs of the pretrained model with its own classifier, in eval mode.
        targets: (N,) int64.
        num_classes: T, the number of target classes.

    Returns:
        (T, S) float32, each row sums to 1; a class without images gets the mean over all images.
    """
    probabilities = F.softmax(source_logits.float(), dim=1)
    one_hot = F.one_hot(targets, num_classes).float()
    counts = one_hot.sum(0)[:, None]
    means = one_hot.T @ probabilities / counts.clamp_min(1)
    return torch.where(counts > 0, means, probabilities.mean(0))
