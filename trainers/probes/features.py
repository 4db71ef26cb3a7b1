"""The features that linear probes are trained on: the inputs of the classifier, computed once."""

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strategies import Strategy, TrialError, freeze, make_plan, resize, set_train_mode, tta_views
from trainers.data import Split
from trainers.device import Device
from trainers.models import ModelSource, normaliser
from trainers.training import classifier_of, features_of

#: The classifier's inputs for a split's images at a size in pixels, in each view of a kind of ``tta``:
#: (views, N, D) float, no tensor of inference mode.
Features = Callable[[Split, int, str], Tensor]


@lru_cache(maxsize=32)
def has_linear_head(source: ModelSource) -> bool:
    """Whether the model ends in one linear layer, whose inputs are the same in training as in eval mode.

    This is tried on two images of noise. :class:`Probes` can train probes of such models only.
    """
    model = source.build(0)
    try:
        classifier = classifier_of(model)
        plan = make_plan(model, Strategy(depth=0))
    except TrialError:
        return False
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        return False
    caught: list[Tensor] = []
    classifier.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    images = torch.rand(2, source.in_chans, source.image_size, source.image_size)
    with torch.no_grad():
        model.eval()(images)
        freeze(model, plan)
        set_train_mode(model, plan)
        logits = model(images)
        (features, in_training) = caught[0], caught[-1]
        return (
            features.ndim == 2
            and torch.allclose(features, in_training)
            and torch.equal(logits, F.linear(in_training, classifier.weight, classifier.bias))
        )


def stored_features(source: ModelSource, seed: int, device: Device) -> Features:
    """Features that are computed at the first call for a split, size and kind of views, and then kept on the device.

    Args:
        source: Builds the model.
        seed: Draws the body, if there are no weights.
        device: Where to compute.
    """
    model = source.build(seed).to(device.torch)
    model.to(memory_format=torch.channels_last)
    normalise = normaliser(source.mean, source.std, device)

    def view_of(size: int, tta: str, view: int) -> Callable[[Tensor], Tensor]:
        return lambda pixels: tta_views(normalise(resize(pixels, size)), tta)[view]

    @cache
    def features(split: Split, size: int, tta: str) -> Tensor:
        views = len(tta_views(torch.zeros(1, 1, size, size), tta))
        return torch.stack([features_of(model, split, view_of(size, tta, k), device) for k in range(views)])

    return features
