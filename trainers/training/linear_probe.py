"""Fitting the head to the frozen body before fine-tuning: the first half of LP-FT (Kumar et al., ICLR 2022)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from strategies import LOSSES, Strategy, TrialError
from trainers.data import Split
from trainers.device import Device
from trainers.memory import Fitting
from trainers.models import Normalise
from trainers.tasks import Task

_BATCH = 256


def probe_head(
    model: nn.Module,
    strategy: Strategy,
    task: Task,
    split: Split,
    normalise: Normalise,
    seed: int,
    device: Device,
    class_weights: Tensor | None = None,
    features: Tensor | None = None,
) -> None:
    """Train the classifier alone for ``probe_epochs`` on the body's features, which are computed once.

    The body is in eval mode and sees every image without augmentation. The rate falls from ``probe_lr`` to
    zero along a half cosine, once over all epochs; the optimizer is AdamW without weight decay.

    Args:
        model: A timm classifier, changed in place.
        strategy: Gives ``probe_epochs``, ``probe_lr``, ``batch_size`` and the loss.
        task: Gives the units of the targets.
        split: The training images.
        normalise: Makes the model's input of (N, C, H, W) float in [0, 1].
        seed: Draws the order of images.
        device: Where to compute.
        class_weights: (C,) float on the device, or None for all alike.
        features: :func:`features_of` the split, if they are known already.

    Raises:
        TrialError: The model has several classifiers, or a classifier of maps.
    """
    classifier = classifier_of(model)
    if features is None:
        features = features_of(model, split, normalise, device)
    if features.ndim != 2:
        raise TrialError("strategy.probe_epochs: the classifier takes maps and not rows of features")
    scale = task.scale(split.targets)
    targets = (split.targets if scale is None else scale.standardise(split.targets)).to(device.torch)
    loss = LOSSES[task.name][strategy.loss]
    updates = max(1, len(targets) // strategy.batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=strategy.probe_lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, strategy.probe_epochs * updates)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(strategy.probe_epochs):
        order = torch.randperm(len(targets), generator=generator)[: updates * strategy.batch_size].to(device.torch)
        for rows in torch.split(order, strategy.batch_size):
            value = loss(classifier(features[rows]).float(), targets[rows], strategy, class_weights)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)


def classifier_of(model: nn.Module) -> nn.Module:
    """The single classifier of a timm model.

    Raises:
        TrialError: The model has several classifiers, as distilled models do.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.ModuleList):
        raise TrialError("strategy.probe_epochs: the model has several classifiers, so there is none to probe")
    return classifier


def features_of(model: nn.Module, split: Split, normalise: Normalise, device: Device) -> Tensor:
    """The inputs of the classifier for each image of a split, (N, ...) float32 on the device; in eval mode.

    Raises:
        TrialError: The model has several classifiers.
    """
    batches = split.batches(torch.arange(len(split)), _BATCH, device.torch)
    return collect_features(model, (normalise(images.float().div_(255)) for images, _ in batches), model, device)


@torch.no_grad()
def collect_features(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any], device: Device) -> Tensor:
    """The inputs of the classifier in forward passes, (N, ...) float32 on the device; in eval mode.

    Args:
        model: The model; its classifier's inputs are recorded.
        batches: Inputs of the passes, with a row for each image; a pass is divided where memory asks for it.
        forward: Makes a pass of a batch: the model, or a part of it that ends in the classifier.
        device: Where to compute.

    Raises:
        TrialError: The model has several classifiers.
    """
    caught: list[Tensor] = []
    hook = classifier_of(model).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    model.eval()
    fitting = Fitting(_BATCH)

    def features(batch: Any) -> tuple[Tensor]:
        caught.clear()
        with device.autocast():
            forward(batch)
        return (caught.pop().float().clone(),)

    try:
        return torch.cat([fitting.rows_of(features, batch)[0] for batch in batches])
    finally:
        hook.remove()
