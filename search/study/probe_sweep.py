"""The sweep of linear probes that a study begins with, and what later trials take from it."""

import csv
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from search.processes import TimeIsOverError, time_limit
from search.storage import SWEEP
from search.trials import OpenStudy
from strategies import (
    LOSS_FIELDS,
    Choice,
    Fixed,
    FloatRange,
    IntRange,
    RandomDraws,
    Space,
    Strategy,
    first_line,
    sample,
)
from trainers import (
    TASKS,
    ModelSource,
    ProbeResult,
    feature_bytes,
    free_memory,
    has_linear_head,
    is_out_of_memory,
    leave_onednn_if_broken,
    probe_parts,
    sweep,
)

# Fields that matter to a head, besides its rate; the sweep tries those in the space.
_TRIED = (*LOSS_FIELDS, "weight_decay", "batch_size", "epochs")
# Heads on fixed features need higher rates than whole models.
_RATES = FloatRange(1e-4, 0.1, log=True)
_DECAYS = FloatRange(1e-6, 0.1, log=True)
# The features of all images are in memory at once.
_MAX_FEATURE_BYTES = 4 * 2**30
# Share of the time that is left.
_MOST_OF_TIME = 0.4
# Not the best probe's rate: deeper training wants a lower one.
_PASSED_ON = tuple(name for name in _TRIED if name not in ("batch_size", "epochs"))

#: Name of the preset that is the best probe of the sweep.
BEST_PROBE = "probe_sweep"


def probe_space(space: Space) -> Space:
    """The sweep's space: its own range of rates, and the study's entries for all other fields of a linear probe."""
    tried = {name: space[name] for name in _TRIED if name in space}
    if isinstance(tried.get("weight_decay", _DECAYS), FloatRange | Choice):
        tried["weight_decay"] = _DECAYS
    return {"depth": Fixed(0), "lr": _RATES, **tried}


def sweep_probes(open_study: OpenStudy) -> None:
    """Train the study's sweep of linear probes, once, and store the best.

    There is no sweep if the study has trials already, or no presets that the sweep could seed.
    """
    asked = open_study.config.probe_sweep if open_study.config.presets and not open_study.is_late else 0
    if asked == 0 or SWEEP in open_study.study.user_attrs or open_study.study.get_trials(deepcopy=False):
        return
    source = open_study.first_source
    if not has_linear_head(source):
        reason = f"{source.name} does not end in one linear layer"
        open_study.watcher.say(f"Probes  none: {reason}")
        open_study.tracker.log(open_study.parent_run, tags={"unfreeze.probe_sweep": f"no sweep: {reason}"})
        return
    size = feature_bytes(source, open_study.materials.data)
    if size > _MAX_FEATURE_BYTES:
        open_study.watcher.say(f"Probes  none: the features of so many images take {size / 2**30:.0f} GiB")
        return
    start = time.perf_counter()
    space, draws = (
        probe_space(open_study.spaces[source.name]),
        RandomDraws(np.random.default_rng(open_study.config.seed)),
    )
    strategies = [sample(space, draws) for _ in range(asked)]
    results = _swept(open_study, source, strategies)
    if not results:
        return
    scored = sorted(
        ((_score(open_study, result), k) for k, result in enumerate(results)), reverse=not open_study.lower_is_better
    )
    score, best = scored[0]
    seconds = time.perf_counter() - start
    values = {name: getattr(results[best].strategy, name) for name in ("lr", *_PASSED_ON)}
    open_study.tracker.log_text(open_study.parent_run, "probe_sweep.csv", _as_csv(open_study, results))
    open_study.tracker.log(open_study.parent_run, metrics={"probe_sweep_score": score, "probe_sweep_seconds": seconds})
    # Last: a study that was interrupted before repeats its sweep.
    open_study.study.set_user_attr(SWEEP, {"values": values, "score": score, "probes": len(results)})
    said = f"lr {values['lr']:.1e}, weight decay {values['weight_decay']:.0e}, {values['loss']}"
    best_has = f"the best has {open_study.config.metric} {score:.4f} ({said})"
    open_study.watcher.say(f"Probes  {len(results)} linear probes in {seconds:.1f} s; {best_has}")


def _swept(open_study: OpenStudy, source: ModelSource, strategies: Sequence[Strategy]) -> list[ProbeResult]:
    """The results of the probes; none where there is too little memory for them, since trials may need less."""
    materials, now = open_study.materials, time.monotonic()
    parts = probe_parts(source, materials.data, strategies, open_study.config.seed, materials.device, materials.reuse)
    try:
        with time_limit(None, now + _MOST_OF_TIME * (open_study.deadline - now)):
            return sweep(parts, len(strategies), open_study.watcher.reading)
    except TimeIsOverError:
        open_study.watcher.say("Probes  none: they would take too much of the time")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        leave_onednn_if_broken(error)
        open_study.watcher.say(f"Probes  none: out of memory: {first_line(error)}")
    # Only here: before, the error still held the features.
    free_memory()
    return []


def seeded_presets(open_study: OpenStudy) -> dict[str, dict[str, Any]]:
    """The study's presets, with the best probe of the sweep first, and its loss and weight decay in all others.

    The best probe is left out where the space always trains blocks. Fields that a preset sets stay. The probe before a
    fine-tuning (``probe_lr``) gets the best probe's rate.
    """
    presets = dict(open_study.config.presets)
    found = open_study.study.user_attrs.get(SWEEP)
    if found is None:
        return presets
    best = {name: value for name, value in found["values"].items() if name != "lr"}
    passed_on = best | {"probe_lr": found["values"]["lr"]}
    seeded = {name: passed_on | preset for name, preset in presets.items()}
    if not holds_probes(open_study.spaces[open_study.first_source.name]):
        # Moved into the space, the best probe would train blocks at a head's rate.
        return seeded
    return {BEST_PROBE: {"depth": 0, "lr": found["values"]["lr"], **best}, **seeded}


def holds_probes(space: Space) -> bool:
    """Whether a linear probe is in the space."""
    match space.get("depth"):
        case Fixed(value=value):
            return bool(value == 0)
        case Choice(choices=choices):
            return 0 in choices
        case IntRange(low=low) | FloatRange(low=low):
            return low == 0
        case _:
            return False


def _score(open_study: OpenStudy, result: ProbeResult) -> float:
    found = [epoch.metrics[f"val_{open_study.config.metric}"] for epoch in result.epochs]
    score = float(np.nanmin(found) if open_study.lower_is_better else np.nanmax(found))
    return score if np.isfinite(score) else float("inf" if open_study.lower_is_better else "-inf")


def _as_csv(open_study: OpenStudy, results: list[ProbeResult]) -> str:
    text = io.StringIO()
    names = ("lr", *_TRIED)
    metrics = [f"val_{name}" for name in TASKS[open_study.config.task].metrics]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*names, "epochs_done", "train_loss", *metrics])
    for result in results:
        last = result.epochs[-1].metrics
        values = [getattr(result.strategy, name) for name in names]
        rows.writerow([*values, len(result.epochs), last["train_loss"], *(last[name] for name in metrics)])
    return text.getvalue()
