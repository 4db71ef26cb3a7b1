"""The model at a trial's start: pretrained, parts drawn anew, its head probed, and adapters added."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strategies import (
    LOSS_FIELDS,
    ConfigError,
    SourceClasses,
    Strategy,
    entries_of_last_blocks,
    learn_relationship,
    split_blocks,
    trained_blocks,
    use_stochastic_norm,
)
from trainers.data import ImageData
from trainers.device import Device
from trainers.models import ModelSource, normaliser, speed_up_small_maps
from trainers.tasks import TASKS
from trainers.training.linear_probe import classifier_of, features_of, probe_head

# The fields that a probe depends on, besides its data, seed, device and model.
_PROBE_FIELDS = ("probe_epochs", "probe_lr", "batch_size", "reinit_blocks", *LOSS_FIELDS)


def prepare_model(
    source: ModelSource,
    data: ImageData,
    strategy: Strategy,
    seed: int,
    device: Device,
    class_weights: Tensor | None = None,
) -> nn.Module:
    """Build the model on its device, complete except for freezing.

    Args:
        source: Builds the model.
        data: Gives the images of a probe.
        strategy: In canonical form.
        seed: Draws the new parts.
        device: Where to compute.
        class_weights: (C,) float on the device, for the probe's loss.

    Raises:
        ConfigError: The strategy cannot be applied to this model.
        TrialError: The strategy asks for a probe, and the model has several classifiers.
    """
    model = source.build(seed, dropout=strategy.dropout, drop_path=strategy.drop_path)
    blocks = split_blocks(model)
    trained = trained_blocks(strategy, len(blocks))
    # Frozen blocks must not be random.
    anew = min(strategy.reinit_blocks, len(trained))
    if anew > 0:
        source.draw_anew(model, entries_of_last_blocks(model, anew), seed)
    model = model.to(device.torch)
    model.to(memory_format=torch.channels_last)
    if strategy.probe_epochs > 0:
        start_from_a_probe(model, source, data, strategy, seed, device, class_weights)
    if strategy.parameters == "lora":
        # Only here: peft takes seconds to import.
        from strategies import add_lora

        modules = [name for position in trained for name in blocks.body[position].modules]
        add_lora(model, modules, strategy.lora_rank, strategy.lora_alpha)
    if strategy.stochastic_norm > 0:
        use_stochastic_norm(model, strategy.stochastic_norm)
    if device.torch.type == "cpu":
        speed_up_small_maps(model)
    return model


def start_from_a_probe(
    model: nn.Module,
    source: ModelSource,
    data: ImageData,
    strategy: Strategy,
    seed: int,
    device: Device,
    class_weights: Tensor | None,
    features: Tensor | None = None,
) -> None:
    """Fit the head before fine-tuning; trials that agree on all that the fit depends on share the head.

    Args:
        model: As drawn from the seed, on its device; its classifier is changed in place.
        source: Keeps the fitted heads.
        data: Gives the training images.
        strategy: In canonical form.
        seed: Draws the order of images.
        device: Where to compute.
        class_weights: (C,) float on the device.
        features: Of the training images, if they are known; see :func:`trainers.training.linear_probe.probe_head`.
    """
    key = (data.fingerprint, device.description, seed, *(getattr(strategy, field) for field in _PROBE_FIELDS))
    if key not in source.probes:
        normalise, task = normaliser(source.mean, source.std, device), TASKS[data.task]
        probe_head(model, strategy, task, data.train, normalise, seed, device, class_weights, features)
        head = classifier_of(model).state_dict()
        source.probes[key] = {name: tensor.detach().cpu().clone() for name, tensor in head.items()}
    classifier_of(model).load_state_dict(source.probes[key])


def source_classes(source: ModelSource, data: ImageData, seed: int, device: Device) -> SourceClasses:
    """The weights' own classifier, with its classes' relationship to the study's; computed once a source and set.

    Raises:
        ConfigError: The weights bring no classifier, or the task has no classes.
    """
    found = source.pretrained_classifier()
    if found is None or data.task != "classification":
        what = "the task has no classes" if found else "the pretrained weights bring no classifier of their own"
        raise ConfigError(f"strategy.co_tuning: {what}")
    weight, bias = (tensor.to(device.torch) for tensor in found)
    key = (data.fingerprint, device.description)
    if key not in source.relationships:
        model = source.build(seed).to(device.torch)
        features = features_of(model, data.train, normaliser(source.mean, source.std, device), device).flatten(1)
        targets = data.train.targets.to(device.torch)
        logits = F.linear(features, weight, bias)
        source.relationships[key] = learn_relationship(logits, targets, len(data.classes)).cpu()
    return SourceClasses(weight, bias, source.relationships[key].to(device.torch))
