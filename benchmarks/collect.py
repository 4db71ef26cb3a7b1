"""Learning curves of our own: packaged models fine-tuned on packaged images, to fit and judge the learnt policy.

``python -m benchmarks.collect`` trains one strategy after another, each on another data set, model, image size, number
of images and length, and writes a row of each to a table. Strategies are drawn so that depths are evenly spread and
learning rates reach from too low to too high. All follows from the seed and the row's number: a run that was ended goes
on where it stopped. Frozen blocks are computed once for all rows. On a GPU there are ten times as many rows.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.collected_sets import Data, available
from search.study.similar import features_of
from strategies import ConfigError, Entry, Fixed, RandomDraws, Strategy, TrialError, parse_space, sample
from trainers import (
    ActivationStore,
    Device,
    EpochResult,
    ImageData,
    ModelSource,
    Reuse,
    Trainer,
    choose_device,
    find_weights,
    unusable_fields,
)

MODELS = {
    "tf_efficientnet_lite0": "package:efficientnet-lite0",
    "resnet18": "embedded",
    "tf_efficientnet_lite1": "package:efficientnet-lite1",
    "tf_efficientnet_lite2": "package:efficientnet-lite2",
}
SIZES = (32, 48, 64)
IMAGES = (100, 200, 400, 800)
EPOCHS = (3, 5, 8, 12)
# Fields of every strategy.
CORE: dict[str, Any] = {
    "depth": {"low": 0.0, "high": 1.0},
    "optimizer": {"choices": ["adamw", "sgd"]},
    "layer_decay": {"low": 0.4, "high": 1.0},
    "weight_decay": {"low": 1e-5, "high": 0.3, "log": True},
    "batch_norm": {"choices": ["train", "frozen_stats"]},
    "batch_size": {"choices": [16, 32, 64, 128]},
    "warmup_epochs": {"choices": [0, 0.5, 1]},
}
# Fields that a strategy has with a probability of one in five; otherwise they keep their defaults.
FURTHER: dict[str, Any] = {
    "depth_from": {"choices": ["middle", "input"]},
    "parameters": {"choices": ["norms_and_biases", "lora"]},
    "unfreeze_epochs": 2,
    "reinit_blocks": 1,
    "probe_epochs": {"choices": [5, 20]},
    "loss": {"choices": ["label_smoothing", "focal", "poly1", "bce"]},
    "class_weights": "balanced",
    "momentum": {"low": 0.5, "high": 0.98},
    "beta2": {"choices": [0.9, 0.99]},
    "head_lr_scale": {"low": 1.0, "high": 30.0, "log": True},
    "schedule": {"choices": ["one_cycle", "multistep", "poly", "constant"]},
    "warmup_lr": 0.1,
    "clip_grad": {"choices": [1, 10]},
    "sam_rho": 0.05,
    "l2_sp": {"choices": [1e-3, 1e-2, 0.1]},
    "delta": {"choices": [1e-3, 1e-2]},
    "bss": {"choices": [1e-4, 1e-3]},
    "co_tuning": {"choices": [0.5, 1, 2]},
    "stochastic_norm": 0.5,
    "dropout": {"low": 0.1, "high": 0.4},
    "drop_path": {"low": 0.1, "high": 0.3},
    "ema": {"choices": [0.9, 0.99]},
    "augment": {"choices": ["light", "medium", "strong"]},
    "policy": {"choices": ["auto", "rand", "trivial"]},
    "views": 4,
    "mixup": {"choices": [0.1, 0.4]},
    "cutmix": {"choices": [0.5, 1]},
    "grow_from": 0.5,
}
_SHARE = 0.2
_LOWEST_LR, _HIGHEST_LR = 1e-5, 0.1
# SGD takes about thirty times the rate of AdamW for the same step.
_SGD = 30.0
# Steps of Kronecker sequences: multiples of them, modulo 1, are spread evenly however many there are.
_DEPTH_STEP, _LR_STEP = 0.7548776662, 0.5698402910


@dataclass(frozen=True, slots=True)
class Job:
    """One fine-tuning: what a row of the table is about."""

    number: int
    data: Data
    model: str
    strategy: Strategy
    seed: int


def job_of(number: int, seed: int, data_sets: list[str], models: list[str], epochs: int | None = None) -> Job:
    """The fine-tuning of a row.

    Args:
        number: Of the row, from 0. Data sets take turns, so that every beginning of the table has all of them.
        seed: Of the table.
        data_sets: Names of the data sets.
        models: Names of the models.
        epochs: Length of all trainings; None to draw it.
    """
    rng = np.random.default_rng([seed, number])
    turn = number // len(data_sets)
    data = Data(data_sets[number % len(data_sets)], int(rng.choice(IMAGES)), int(rng.choice(SIZES)))
    # Twice the smallest model for once each other: it trains in the least time.
    model = [models[0], *models][(turn + number) % (len(models) + 1)]
    further = {name: entry for name, entry in FURTHER.items() if rng.random() < _SHARE}
    space: dict[str, Entry] = parse_space(CORE | further | {"epochs": epochs or int(rng.choice(EPOCHS))})
    depth = (0.5 + number * _DEPTH_STEP) % 1
    # A fraction above 0 trains one block at least.
    space["depth"] = Fixed(0 if depth < 0.06 else depth)
    strategy = sample(space, RandomDraws(rng))
    lr = _LOWEST_LR * (_HIGHEST_LR / _LOWEST_LR) ** ((0.5 + number * _LR_STEP) % 1)
    lr *= _SGD if strategy.optimizer == "sgd" else 1
    fits = min(strategy.batch_size, data.images // 4)
    return Job(number, data, model, strategy.replace(lr=min(lr, 3.0), batch_size=fits), seed)


class Collector:
    """Trains fine-tunings and gives their rows; what they share is opened once.

    Args:
        folder: Where composed images, decoded images and outputs of frozen blocks lie.
        device: Where to compute.
        most_seconds: Seconds after which a training is cut off, after an epoch.
    """

    def __init__(self, folder: Path, device: Device, most_seconds: float) -> None:
        self._folder, self._device, self._most_seconds = folder, device, most_seconds
        self._reuse = Reuse(ActivationStore(folder / "cache", 8 * 2**30), sharing=4.0)
        self._data = lru_cache(maxsize=16)(lambda data: data.open(folder))
        self._features = lru_cache(maxsize=256)(lambda data: features_of(self._data(data)))
        self._source = lru_cache(maxsize=16)(self._new_source)

    def _new_source(self, model: str, classes: int, image_size: int) -> ModelSource:
        return ModelSource(model, find_weights(model, [MODELS[model]]), classes, image_size)

    def row(self, job: Job) -> dict[str, Any]:
        """Train one fine-tuning."""
        data = self._data(job.data)
        source = self._source(job.model, len(data.classes), job.data.image_size)
        job = replace(job, strategy=_usable(job.strategy, source))
        facts = {"number": job.number, "data_set": job.data.name, **self._facts(job, source, data)}
        began = time.process_time()
        results: list[tuple[EpochResult, float]] = []
        spent, starting, ended = 0.0, 0.0, ""
        try:
            trainer = Trainer(source, data, job.strategy, job.seed, self._device, reuse=self._reuse)
            starting = time.process_time() - began
            for result, seconds in _timed(trainer, self._device):
                results.append((result, seconds))
                spent += seconds
                if spent > self._most_seconds:
                    break
        except (ConfigError, TrialError) as error:
            ended = str(error)
        metrics = [result.metrics for result, _ in results]
        return facts | {
            "accuracy": [round(one["val_accuracy"], 5) for one in metrics],
            "train_loss": [float(f"{one['train_loss']:.5g}") for one in metrics],
            "seconds": [round(seconds, 4) for _, seconds in results],
            "wall_seconds": [round(result.seconds, 4) for result, _ in results],
            "start_seconds": round(starting, 4),
            "ended": ended,
        }

    def _facts(self, job: Job, source: ModelSource, data: ImageData) -> dict[str, Any]:
        """What was trained on what."""
        canonical = job.strategy.canonical(source.num_blocks)
        of_data = self._features(job.data)
        kept = ("images", "classes", "image_size", "evenness", "mean", "contrast", "variety")
        default = Strategy().to_dict()
        changed = {name: value for name, value in canonical.to_dict().items() if value != default[name]}
        return {
            **{name: round(of_data[name], 5) for name in kept},
            "val_images": len(data.val),
            "strategy": canonical.fingerprint(source.num_blocks),
            "model": job.model,
            "weights": MODELS[job.model],
            "seed": job.seed,
            "num_blocks": source.num_blocks,
            "blocks_trained": int(canonical.depth),
            "epochs": canonical.epochs,
            "fields": json.dumps(changed, sort_keys=True),
            "device": self._device.torch.type,
            **as_quick_tune(canonical, source.num_blocks),
        }


def _usable(strategy: Strategy, source: ModelSource) -> Strategy:
    """The strategy without what means nothing for the model, such as Co-Tuning without a pretrained classifier."""
    changed = {name: Fixed(value) for name, value in strategy.to_dict().items()}
    default = Strategy()
    return strategy.replace(
        **{name: getattr(default, name) for name in unusable_fields(changed, source, "classification", False)}
    )


def _timed(trainer: Trainer, device: Device) -> Iterator[tuple[EpochResult, float]]:
    """Results of the epochs, and the seconds of each: of the processor, or on a GPU of the clock on the wall."""
    while True:
        began = time.process_time()
        result = next(trainer, None)
        if result is None:
            return
        yield result, result.seconds if device.torch.type == "cuda" else time.process_time() - began


def as_quick_tune(strategy: Strategy, num_blocks: int) -> dict[str, Any]:
    """A strategy in the columns of Quick-Tune's table of learning curves, as far as they apply.

    Args:
        strategy: In canonical form.
        num_blocks: Blocks of the model.
    """
    s = strategy
    augmentation = {"rand": "randaugment", "trivial": "trivialaugment", "auto": "auto_augment"}.get(s.policy)
    return {
        "pct_to_freeze": round(1 - int(s.depth) / num_blocks, 4),
        "linear_probing": float(s.probe_epochs > 0),
        "layer_decay": -1.0 if s.layer_decay == 1 else round(s.layer_decay, 5),
        "lr": float(f"{s.lr:.6g}"),
        "opt": s.optimizer,
        "momentum": s.momentum if s.momentum is not None else math.nan,
        "weight_decay": float(f"{s.weight_decay:.6g}"),
        "sched": s.schedule,
        "warmup_epochs": s.warmup_epochs,
        "warmup_lr": s.warmup_lr,
        "batch_size": float(s.batch_size),
        "clip_grad": s.clip_grad or -1.0,
        "smoothing": s.label_smoothing if s.loss == "label_smoothing" else 0.0,
        "mixup": s.mixup,
        "cutmix": s.cutmix,
        "mixup_prob": s.mix_prob if s.mixup or s.cutmix else 0.0,
        "drop": round(s.dropout, 5),
        "stoch_norm": float(s.stochastic_norm > 0),
        "sp_reg": s.l2_sp,
        "delta_reg": s.delta,
        "bss_reg": s.bss,
        "cotuning_reg": s.co_tuning,
        "data_augmentation": augmentation or "None",
        "decay_rate": s.decay_rate,
        "amp": 0.0,
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows so far. A last line that was not written to its end is removed from the file."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def write_table(rows: list[dict[str, Any]], table: Path) -> None:
    """Write the rows as Parquet, in one step."""
    unfinished = table.with_suffix(".part")
    curves = [row for row in rows if row["accuracy"]]
    frame = pd.DataFrame(sorted(curves, key=lambda row: int(row["number"])))
    frame.to_parquet(unfinished, index=False, compression="zstd")
    unfinished.replace(table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("collected"), help="for rows so far, images and caches")
    parser.add_argument("--table", type=Path, help="the table; by default curves.parquet in the folder")
    parser.add_argument("--rows", type=int, help="rows of the whole table; by default 400, and 4,000 on a GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", nargs="+", default=available(), choices=available(), metavar="SET")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--epochs", type=int, help="length of all trainings; by default drawn")
    parser.add_argument("--most-seconds", type=float, default=60.0, help="after which a training is cut off")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train the rows that are missing, and write the table."""
    options = parse(arguments)
    device = choose_device(options.device, "fp32" if options.device == "cpu" else "auto")
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "rows.jsonl"
    table = options.table or options.folder / "curves.parquet"
    rows = read_rows(file)
    wanted = options.rows or (4000 if device.torch.type == "cuda" else 400)
    done = {row["number"] for row in rows}
    collector = Collector(options.folder, device, options.most_seconds)
    with file.open("a", encoding="utf-8") as lines:
        for number in range(wanted):
            if number in done:
                continue
            job = job_of(number, options.seed, options.sets, options.models, options.epochs)
            row = collector.row(job)
            rows.append(row)
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            best = max(row["accuracy"], default=math.nan)
            seconds = sum(row["seconds"])
            print(f"{number}: {row['data_set']}, {job.model}, {best:.4f} in {seconds:.1f} s {row['ended']}", flush=True)
            if number % 20 == 0:
                write_table(rows, table)
    write_table(rows, table)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
