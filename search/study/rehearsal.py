"""A rehearsal of a study: what would be done, and how long it would take, with nothing written but decoded images."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from search.config import StudyConfig, values_of
from search.reporting import SafeConsole, Terminal, duration, print_table, widened
from search.study.materials import gather, open_models
from search.study.places import check_places
from search.study.whole_time import FIRST_END, with_seconds
from search.trials import Materials
from strategies import Entry, Fixed, Strategy, one_line
from trainers import ModelSource, Speed, feature_bytes, measure_speed, multiply_adds

# Batches that are timed on a GPU, where one is too short for a clock.
_GPU_BATCHES = 4
# Presets that are shown.
_MOST_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Estimate:
    """What trials of a depth are expected to take.

    Args:
        model: The model's name.
        speed: What was measured.
        seconds: Seconds of a trial with the most epochs of the space.
    """

    model: str
    speed: Speed
    seconds: float


def rehearse(config: StudyConfig, began: float) -> list[Estimate]:
    """Open images and models, measure, and print what a search would do; no store is opened.

    Args:
        config: The study's configuration.
        began: When the command began, on ``time.monotonic``.

    Raises:
        UnfreezeError: The configuration, data or weights cannot be used.
    """
    check_places(config)
    config = with_seconds(config, began)
    with Terminal(config.metric) as terminal:
        models = open_models(config, terminal)
        materials, config = gather(models, terminal), models.config
        opened = time.monotonic() - began
        terminal.say(f"Data    {materials.data.summary()}")
        terminal.say(f"Models  {', '.join(_named(source) for source in materials.sources.values())}")
        space = config.space()
        searched = [name for name, entry in space.items() if not isinstance(entry, Fixed)]
        terminal.say(f"Space   {len(searched)} fields: {', '.join(searched) or 'none, one strategy'}")
        for name, preset in list(config.presets.items())[:_MOST_SHOWN]:
            source = materials.sources[config.model.names[0]]
            terminal.say(f"First   {name}: {one_line(Strategy.from_dict(preset).canonical(source.num_blocks), '')}")
        estimates = [found for source in materials.sources.values() for found in _estimates(config, materials, source)]
        for line in _disk_lines(materials):
            terminal.say(line)
    print_table(widened(SafeConsole(highlight=False)), _title(space), _columns(estimates))
    terminal.say(_end_line(config, estimates, opened))
    return estimates


def _named(source: ModelSource) -> str:
    return f"{source.name} ({source.weights.source}, {source.num_blocks} blocks)"


def _estimates(config: StudyConfig, materials: Materials, source: ModelSource) -> list[Estimate]:
    """Measure a strategy that trains no block, one that trains half of them, and one that trains all."""
    space = config.space()
    fixed = {name: entry.value for name, entry in space.items() if isinstance(entry, Fixed) and not entry.when}
    batch, epochs = _largest(space)
    shares, found = _shares(source), []
    batches = _GPU_BATCHES if materials.device.torch.type == "cuda" else 1
    for depth in dict.fromkeys((0, source.num_blocks // 2, source.num_blocks)):
        fields = {**fixed, "depth": depth, "batch_size": batch, "unfreeze_epochs": 0, "swa_epochs": 0}
        speed = measure_speed(source, config.task, Strategy(**fields), materials.device, batches)
        frozen = shares[depth] if materials.reuse is not None else 0.0
        seconds = trial_seconds(speed, epochs, len(materials.data.train), len(materials.data.val), frozen)
        found.append(Estimate(source.name, speed, seconds))
    return found


def _largest(space: Mapping[str, Entry]) -> tuple[int, int]:
    """The largest batch and the most epochs of a space."""
    return max(values_of(space, "batch_size")), max(values_of(space, "epochs"))


def _shares(source: ModelSource) -> Sequence[float]:
    """By depth, the share of the forward pass that the frozen blocks take."""
    blocks = multiply_adds(source)
    whole = sum(blocks) or 1.0
    return [sum(blocks[: len(blocks) - depth]) / whole for depth in range(len(blocks) + 1)]


def trial_seconds(speed: Speed, epochs: int, train: int, val: int, frozen: float) -> float:
    """Seconds of a trial whose frozen blocks are computed once, where that is faster than in each epoch.

    Args:
        speed: Seconds an image, with the frozen blocks.
        epochs: Epochs of the trial.
        train: Training images.
        val: Validation images.
        frozen: Share of the forward pass that the frozen blocks take.
    """
    once = speed.score_seconds * frozen
    each = train * speed.train_seconds + val * speed.score_seconds
    spared = (train + val) * once
    return min(epochs * each, spared + epochs * max(0.0, each - spared))


def _disk_lines(materials: Materials) -> list[str]:
    data, source = materials.data, next(iter(materials.sources.values()))
    probes = feature_bytes(source, data) / 2**20 if data.task in ("classification", "multilabel", "regression") else 0.0
    reuse = materials.reuse
    kept = "none, reuse is off" if reuse is None else f"about {probes:,.0f} MiB for linear probes, more for deeper ones"
    return [f"Disk    outputs of frozen blocks: {kept} (reuse_gib is the limit)"]


def _title(space: Mapping[str, Entry]) -> str:
    batch, epochs = _largest(space)
    return f"Measured with batches of {batch}; seconds of a trial of {epochs} epochs"


def _columns(estimates: Sequence[Estimate]) -> dict[str, list[str]]:
    return {
        "model": [one.model for one in estimates],
        "depth": [str(one.speed.depth) for one in estimates],
        "images/s": [f"{1 / one.speed.train_seconds:,.0f}" for one in estimates],
        "scored/s": [f"{1 / one.speed.score_seconds:,.0f}" for one in estimates],
        "memory GiB": [f"{one.speed.peak_bytes / 2**30:.1f}" for one in estimates],
        "seconds a trial": [f"{one.seconds:,.1f}" for one in estimates],
    }


def _end_line(config: StudyConfig, estimates: Sequence[Estimate], opened: float) -> str:
    """How many trials fit, and when the search would end if it began now."""
    mean = sum(one.seconds for one in estimates) / len(estimates)
    budget = config.budget
    seconds = float("inf") if budget.trials is None else opened + budget.trials * mean + FIRST_END
    trials = f"{budget.trials}" if budget.trials is not None else ""
    if budget.seconds is not None and budget.seconds < seconds:
        fitting = max(0.0, budget.seconds - opened - FIRST_END) / mean
        seconds, trials = budget.seconds, f"about {fitting:,.0f}"
    clock = datetime.now() + timedelta(seconds=seconds)
    return f"Trials  {trials} in {duration(seconds)}; begun now, the search ends at {clock:%H:%M}. Nothing was trained"
