"""Many linear probes before a search's first trial, in the time of one trial, to find good settings of the head."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from strategies import Strategy, TrialError, make_plan
from trainers.data import ImageData, Split
from trainers.device import Device
from trainers.models import ModelSource, normaliser
from trainers.probes.features import Features, stored_features
from trainers.probes.grouping import probe_groups
from trainers.probes.stacked import Probes
from trainers.reuse import FrozenOutputs, Reuse, Setting
from trainers.training import EpochResult, classifier_of, collect_features

# Stacked heads with gradients, moments and averages take about this many numbers of four bytes for each weight.
_COPIES = 8
_MAX_BYTES = 512 * 2**20
# Rows in a batch of the classifier.
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe of a sweep.

    Args:
        strategy: A linear probe.
        epochs: Its results, epoch by epoch, until the probe ended.
    """

    strategy: Strategy
    epochs: tuple[EpochResult, ...]


def sweep(
    parts: Iterable[tuple[Sequence[int], Probes]], total: int, progress: Callable[[str, int, int], None]
) -> list[ProbeResult]:
    """Train linear probes together, as many at once as memory allows.

    Args:
        parts: From :func:`probe_parts`.
        total: Probes in all of them.
        progress: Called with the number of probes that are done.

    Returns:
        A result for each probe that finished at least one epoch.
    """
    results: list[ProbeResult] = []
    done = 0
    for part, probes in parts:
        history: dict[int, list[EpochResult]] = {}
        for epoch in probes:
            for place, result in epoch.items():
                if not isinstance(result, TrialError):
                    history.setdefault(place, []).append(result)
        results += [ProbeResult(probes.strategies[place], tuple(epochs)) for place, epochs in history.items()]
        done += len(part)
        progress("linear probes", done, total)
    return results


def probe_parts(
    source: ModelSource,
    data: ImageData,
    strategies: Sequence[Strategy],
    seed: int,
    device: Device,
    reuse: Reuse | None,
) -> Iterator[tuple[list[int], Probes]]:
    """Linear probes by groups that are trained together, as many at once as memory allows.

    Args:
        source: Builds the model, which must have a linear head.
        data: Gives training and validation images.
        strategies: Strategies of depth 0; those that :class:`Probes` cannot train are in no group.
        seed: Draws heads and the order of images.
        device: Where to compute.
        reuse: Shares features with trials, processes and nights; None computes them for this call.

    Yields:
        Positions of the strategies, and the :class:`Probes` that train them, in that order.
    """
    features = _shared_features(source, data, seed, device, reuse)
    size = _COPIES * 4 * len(data.classes) * _width(source)
    at_once = max(1, _MAX_BYTES // max(1, size))
    for group in probe_groups(strategies):
        for start in range(0, len(group), at_once):
            part = group[start : start + at_once]
            yield part, Probes(source, data, [strategies[k] for k in part], seed, device, features)


def feature_bytes(source: ModelSource, data: ImageData) -> int:
    """Memory that a sweep needs for the features of the training and validation images."""
    return 4 * _width(source) * (len(data.train) + len(data.val))


def _width(source: ModelSource) -> int:
    """Number of inputs of the classifier."""
    weight = classifier_of(source.build(0)).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _shared_features(source: ModelSource, data: ImageData, seed: int, device: Device, reuse: Reuse | None) -> Features:
    """Features from the stored rows that trials of depth 0 read, as far as such rows exist."""
    computed = stored_features(source, seed, device)
    if reuse is None:
        return computed
    strategy = Strategy(depth=0).canonical(source.num_blocks)
    model = source.build(seed).to(device.torch)
    model.to(memory_format=torch.channels_last)
    normalise = normaliser(source.mean, source.std, device)
    setting = Setting(source, model, make_plan(model, strategy), strategy, seed, data, normalise, device)
    known = reuse.look_up(setting).known
    read = {id(getattr(data, name)): _features_behind(model, rows, device) for name, rows in known.items()}

    def features(split: Split, size: int, tta: str) -> Tensor:
        if id(split) in read and size == setting.size and tta == "none":
            return read[id(split)]
        return computed(split, size, tta)

    return features


def _features_behind(model: nn.Module, known: FrozenOutputs, device: Device) -> Tensor:
    """The classifier's inputs for each row, (1, N, D) float32 on the device."""
    batches = known.batches(torch.arange(len(known.rows)), _ROWS, device.torch)
    return collect_features(model, batches, lambda rows: known.cut.suffix(model, rows), device)[None]
