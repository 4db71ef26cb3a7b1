"""Tables of learning curves: one row is one fine-tuning, with its strategy, its scores and its seconds.

The fields have Quick-Tune's names (Arango et al., ICLR 2024). A column that a table lacks, and a value that is missing,
is a missing field.
"""

import ast
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.scheduling.learned.features import Candidate, ModelFeatures, StrategyFeatures, TaskFeatures

_LONGEST = 50
# timm's published results at the size in the name: million parameters, billion multiply-adds, top-1 in percent, pixels.
_MODELS: dict[str, tuple[float, float, float, int]] = {
    "beit_base_patch16_384": (86.7, 67.7, 86.8, 384),
    "beit_large_patch16_512": (305.7, 362.2, 88.6, 512),
    "convnext_small_384_in22ft1k": (50.2, 25.6, 85.8, 384),
    "deit3_small_patch16_384_in21ft1k": (22.2, 15.5, 84.8, 384),
    "dla46x_c": (1.1, 0.54, 66.0, 224),
    "edgenext_small": (5.6, 1.26, 81.6, 320),
    "edgenext_x_small": (2.3, 0.54, 74.9, 288),
    "edgenext_xx_small": (1.3, 0.26, 71.1, 288),
    "mobilevit_xs": (2.3, 1.05, 74.6, 256),
    "mobilevit_xxs": (1.3, 0.42, 68.9, 256),
    "mobilevitv2_075": (2.9, 1.05, 75.6, 256),
    "resnet18": (11.7, 1.82, 69.8, 224),
    "swinv2_base_window12to24_192to384_22kft1k": (87.9, 55.3, 87.1, 384),
    "tf_efficientnet_b4_ns": (19.3, 4.5, 85.2, 380),
    "tf_efficientnet_b6_ns": (43.0, 19.4, 86.5, 528),
    "tf_efficientnet_b7_ns": (66.4, 38.3, 86.8, 600),
    "tf_efficientnet_lite0": (4.7, 0.41, 74.8, 224),
    "tf_efficientnet_lite1": (5.4, 0.62, 76.6, 240),
    "tf_efficientnet_lite2": (6.1, 0.89, 77.5, 260),
    "volo_d1_384": (26.8, 22.8, 85.2, 384),
    "volo_d3_448": (86.6, 96.3, 86.5, 448),
    "volo_d4_448": (193.4, 197.1, 86.8, 448),
    "volo_d5_448": (295.9, 315.1, 87.0, 448),
    "volo_d5_512": (296.1, 425.1, 87.1, 512),
    "xcit_nano_12_p8_384_dist": (3.1, 6.3, 77.8, 384),
    "xcit_small_12_p8_384_dist": (26.2, 54.9, 85.1, 384),
    "xcit_tiny_12_p8_384_dist": (6.7, 14.1, 82.4, 384),
    "xcit_tiny_24_p8_384_dist": (12.1, 27.1, 83.7, 384),
}


@dataclass(frozen=True, slots=True)
class Curves:
    """All fine-tunings of one data set.

    Args:
        name: The data set.
        tasks: Features of each fine-tuning's data: a table may have some of its images, or other sizes.
        candidates: What was trained.
        scores: Score after each epoch.
        seconds: Seconds of each epoch.
    """

    name: str
    tasks: tuple[TaskFeatures, ...]
    candidates: tuple[Candidate, ...]
    scores: tuple[tuple[float, ...], ...]
    seconds: tuple[tuple[float, ...], ...]


def read_tables(files: Iterable[Path]) -> list[Curves]:
    """Tables as lists of curves, one a data set, by name.

    Args:
        files: Parquet files.
    """
    import pandas as pd

    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    found = []
    for name, rows in table.groupby("data_set", sort=True):
        records = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
        records = [row for row in records if len(row["accuracy"])]
        found.append(
            Curves(
                str(name),
                tuple(task_of(row) for row in records),
                tuple(candidate_of(row) for row in records),
                tuple(tuple(float(one) for one in row["accuracy"]) for row in records),
                tuple(tuple(float(one) for one in row["seconds"]) for row in records),
            )
        )
    return found


def task_of(row: Mapping[str, Any]) -> TaskFeatures:
    """The data of a table's row."""
    size, evenness = _whole(row.get("image_size")), _float(row.get("evenness"))
    return TaskFeatures(int(row["images"]), int(row["classes"]), size, evenness)


def candidate_of(row: Mapping[str, Any]) -> Candidate:
    """The candidate of a table's row."""
    epochs = _whole(row.get("epochs")) or _LONGEST
    betas = _betas(row.get("opt_betas"))
    momentum = _float(row.get("momentum"))
    optimizer, decay = _text(row.get("opt")), _float(row.get("layer_decay"))
    frozen, limit = _float(row.get("pct_to_freeze")), _float(row.get("clip_grad"))
    name, strength = augmentation_of(row)
    warmup = _float(row.get("warmup_epochs"))
    strategy = StrategyFeatures(
        optimizer=optimizer,
        lr=_float(row.get("lr")),
        momentum=betas[0] if betas else momentum,
        beta2=betas[1] if betas else None,
        weight_decay=_float(row.get("weight_decay")),
        layer_decay=None if decay is None else (1.0 if decay < 0 else decay),
        trained=None if frozen is None else 1 - frozen,
        probe_first=_truth(row.get("linear_probing")),
        batch_size=_whole(row.get("batch_size")),
        clip_grad=None if limit is None else max(limit, 0.0),
        schedule=_text(row.get("sched")),
        warmup=None if warmup is None else warmup / epochs,
        smoothing=_float(row.get("smoothing")),
        mixup=_float(row.get("mixup")),
        cutmix=_float(row.get("cutmix")),
        mix_probability=_float(row.get("mixup_prob")),
        dropout=_float(row.get("drop")),
        stochastic_norm=_truth(row.get("stoch_norm")),
        sp=_float(row.get("sp_reg")),
        delta=_float(row.get("delta_reg")),
        bss=_float(row.get("bss_reg")),
        cotuning=_float(row.get("cotuning_reg")),
        augmentation=name,
        augmentation_strength=strength,
        amp=_truth(row.get("amp")),
    )
    return Candidate(strategy, model_of(row), epochs)


def model_of(row: Mapping[str, Any]) -> ModelFeatures:
    """The model of a table's row; what the table does not say of Quick-Tune's models is timm's published result."""
    name = _text(row.get("model")) or ""
    known = _MODELS.get(name)
    parameters, flops = _float(row.get("parameters")), _float(row.get("flops"))
    accuracy, size = _float(row.get("pretrained_accuracy")), _whole(row.get("image_size"))
    if known is not None:
        parameters = known[0] * 1e6 if parameters is None else parameters
        flops = known[1] * 1e9 if flops is None else flops
        accuracy = known[2] / 100 if accuracy is None else accuracy
        size = known[3] if size is None else size
    return ModelFeatures(name, parameters, flops, accuracy, size)


def augmentation_of(row: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Name and strength of a row's augmentation."""
    if "data_augmentation" not in row:
        return None, None
    text = _text(row["data_augmentation"]) or "none"
    name = next((one for one in ("none", "auto", "random", "trivial") if text.startswith(one[:4])), text)
    if name == "random":
        return name, (_float(row.get("ra_magnitude")) or 9.0) / 20
    return name, {"none": 0.0, "trivial": 0.6, "auto": 0.5}.get(name)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value not in ("None", "nan", "") else None


def _float(value: Any) -> float | None:
    if value is None or isinstance(value, str):
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _whole(value: Any) -> int | None:
    number = _float(value)
    return None if number is None else round(number)


def _truth(value: Any) -> bool | None:
    number = _float(value)
    return None if number is None else bool(number)


def _betas(value: Any) -> tuple[float, float] | None:
    text = _text(value)
    if text is None:
        return None
    first, second = ast.literal_eval(text) if "(" in text else json.loads(text)
    return float(first), float(second)
