"""The typed configuration of a study: every key with its type, bounds, default and help line."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from search.urls import without_password
from strategies import (
    TASK_LOSSES,
    Choice,
    ConfigError,
    Entry,
    Fixed,
    FloatRange,
    IntRange,
    Strategy,
    nearest,
    parse_space,
)

DEFAULT_SPACE: dict[str, Any] = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "layer_decay": {"low": 0.4, "high": 1.0},
    "weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "batch_norm": {"choices": ["train", "frozen_stats"]},
    "epochs": 5,
    "batch_size": 64,
    "warmup_epochs": 0.5,
    "augment": "none",
}

DEFAULT_PRESETS: dict[str, dict[str, Any]] = {
    "linear_probe": {"depth": 0, "lr": 3e-3},
    "last_block": {"depth": 1, "lr": 1e-3},
    # On convolutional networks better than with decay, which transformers need.
    "full": {"depth": 1.0, "lr": 2e-3},
    "full_layer_decay": {"depth": 1.0, "lr": 2e-3, "layer_decay": 0.8},
}

# The metrics of each task, the first its default; known here without importing torch.
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "macro_f1", "loss"),
    "multilabel": ("mean_average_precision", "macro_f1", "micro_f1", "exact_match", "loss"),
    "regression": ("rmse", "mae", "r2", "spearman", "loss"),
    "segmentation": ("mean_iou", "dice", "pixel_accuracy", "loss"),
    "detection": ("map", "map50", "mar"),
}

# What can stand on the encoder for tasks whose targets lie in the image, the default first; as above without torch.
TASK_DECODERS: dict[str, tuple[str, ...]] = {
    "segmentation": ("unet", "fpn", "deeplabv3plus", "fcn"),
    "detection": ("faster_rcnn", "retinanet", "fcos"),
}

Cost = Literal["seconds", "parameters_trained"]

# Of Optuna's samplers, those that refuse a study with more than one objective.
ONE_OBJECTIVE_SAMPLERS = ("cmaes",)

# Processes that train at once on a device, each of which takes memory of its own; and on all nodes of a cluster.
MOST_WORKERS, MOST_RAY_WORKERS = 64, 1024

# The executors' keys that one of them alone knows.
EXECUTOR_KEYS: dict[str, tuple[str, ...]] = {
    "local": ("trials_per_device", "devices"),
    "ray": ("address", "workers", "gpus", "resources", "placement"),
}

WEIGHTS_PACKAGES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_PLACE_KEYS = ("root", "dataset", "manifest", "annotations", "shards", "columns", "masks", "palette")
# What each source needs of those keys, and what it can use besides.
_SOURCE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "digits": ((), ()),
    "folder": (("root",), ()),
    "manifest": (("manifest",), ("root", "columns")),
    "coco": (("annotations",), ("root",)),
    "huggingface": (("dataset",), ("columns",)),
    "masks": (("root", "masks"), ("palette",)),
    "scenes": ((), ()),
    "torchvision": (("dataset", "root"), ()),
    "voc": (("root",), ()),
    "webdataset": (("shards",), ("root", "columns")),
}
_COLUMNS = ("image", "label", "split", "group")
_SPLITS = ("train", "val", "test")

Text = Annotated[str, Field(min_length=1)]
Files = Text | dict[str, Text] | None


def _problems(*lines: str) -> PydanticCustomError:
    """What a validator raises: one line a problem, each beginning with the full key."""
    return PydanticCustomError("problems", "wrong values", {"lines": list(lines)})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class DataConfig(_Section):
    """Which images, and how they are split."""

    source: Literal[
        "coco",
        "digits",
        "folder",
        "huggingface",
        "manifest",
        "masks",
        "scenes",
        "torchvision",
        "voc",
        "webdataset",
    ] = Field("digits", description="where images come from; by default what the keys below ask for")
    root: Text | None = Field(
        None, description="folder of the images (folder, masks, torchvision, voc), or base of relative paths"
    )
    dataset: Text | None = Field(
        None, description="torchvision set such as FashionMNIST (with root), or Hugging Face set: a folder, owner/name"
    )
    manifest: Files = Field(None, description="CSV or Parquet with path, label, maybe split; or one a split")
    annotations: Files = Field(None, description="COCO json; or one a split: {train: a.json, val: b.json}")
    shards: Files = Field(None, description="WebDataset tars, such as train-{000..012}.tar; or some a split")
    columns: dict[str, Any] = Field(
        default_factory=dict, description="names of the columns image, label (or a list), split and group"
    )
    masks: Text | None = Field(None, description="folder of the masks: root's a/b.jpg has the mask a/b.png here")
    palette: Text | None = Field(
        None, description="CSV that names the masks' classes: name,index or name,red,green,blue; null for 0 to K"
    )
    ignore_index: int | None = Field(
        255, ge=0, le=255, description="what masks hold where a pixel does not count; null if every pixel does"
    )
    image_size: int = Field(64, ge=8, le=2048, description="height and width the model sees, in pixels")
    max_value: float | None = Field(
        None, gt=0, description="what is white in images of more than 8 bits; null for their type's range"
    )
    val_fraction: float = Field(0.2, gt=0, lt=1, description="validation's share where the data has no split")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="the test's share where the data has no split")
    split_seed: int = Field(0, ge=0, lt=2**32, description="seed of that split")
    folds: int | None = Field(None, ge=2, description="cross-validation: divide train in so many parts; null for none")
    fold: int = Field(0, ge=0, description="which of the folds is validation, from 0")
    limit_train: int | None = Field(None, ge=1, description="at most this many training images; null for all")
    limit_val: int | None = Field(None, ge=1, description="at most this many validation images; null for all")
    limit_test: int | None = Field(None, ge=1, description="at most this many test images; null for all")
    on_bad_image: Literal["refuse", "skip"] = Field("refuse", description="what an unreadable image leads to")
    on_duplicates: Literal["report", "move"] = Field(
        "report", description="images of val or test that train holds too: report them, or move them to train"
    )
    cache: Text = Field("mlruns/cache", description="folder of the decoded images, shared by studies and processes")
    cache_gib: float = Field(20.0, ge=0, description="bound of that folder; a larger set is decoded in every epoch")
    workers: int = Field(2, ge=0, description="processes that decode a set too large for the cache")

    @model_validator(mode="before")
    @classmethod
    def _source_follows(cls, values: Any) -> Any:
        """Whoever names a folder of images wants it searched, and not digits."""
        if not isinstance(values, Mapping) or "source" in values:
            return values
        dataset = "huggingface" if values.get("root") is None else "torchvision"
        clues = {"manifest": "manifest", "annotations": "coco", "shards": "webdataset"}
        clues |= {"masks": "masks", "dataset": dataset, "root": "folder"}
        source = next((source for key, source in clues.items() if values.get(key) is not None), "digits")
        return {"source": source, **values}

    @field_validator("manifest", "annotations", "shards")
    @classmethod
    def _by_split(cls, value: Files, info: ValidationInfo) -> Files:
        if isinstance(value, dict):
            found = [f"data.{info.field_name}.{key}: {_unknown(key, _SPLITS)}" for key in value if key not in _SPLITS]
            if "train" not in value:
                found.append(f"data.{info.field_name}.train: missing; it is what models are trained on")
            if found:
                raise _problems(*found)
        return value

    @field_validator("columns")
    @classmethod
    def _are_columns(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = [f"data.columns.{key}: {_unknown(key, _COLUMNS)}" for key in value if key not in _COLUMNS]
        for key, name in value.items():
            names = name if key == "label" and isinstance(name, list) else [name]
            if key in _COLUMNS and not (names and all(isinstance(one, str) and one for one in names)):
                expected = "the name of a column" + (", or a list of such" if key == "label" else "")
                found.append(f"data.columns.{key}: {name!r} is not {expected}")
        if found:
            raise _problems(*found)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "DataConfig":
        needed, usable = _SOURCE_KEYS[self.source]
        found = [
            f"data.{key}: missing; data.source: {self.source} needs it" for key in needed if getattr(self, key) is None
        ]
        found += [
            f"data.{key}: {getattr(self, key)!r} would not be used by data.source: {self.source}; change that"
            for key in _PLACE_KEYS
            if key not in needed + usable and getattr(self, key)
        ]
        if self.fold >= (self.folds or 1):
            of = f"data.folds: {self.folds}" if self.folds else "data.folds is not given"
            found.append(f"data.fold: {self.fold} is not a fold, {of}; they are counted from 0")
        if self.val_fraction + self.test_fraction >= 1:
            found.append(
                f"data.val_fraction: {self.val_fraction:g} and data.test_fraction: {self.test_fraction:g} "
                "leave nothing to train on; their sum must be below 1"
            )
        if found:
            raise _problems(*found)
        return self


def _unknown(key: str, known: tuple[str, ...]) -> str:
    return f"unknown key; {nearest(str(key), known)}"


class ModelConfig(_Section):
    """Which model, or which models to choose from, and from which weights."""

    name: Text | tuple[Text, ...] = Field("resnet18", description="any timm classifier, or a list of them to search")
    decoder: Text | None = Field(
        None,
        description="what stands on the model's feature maps, by default the first of the task's: "
        + "; ".join(f"{task}: {', '.join(names)}" for task, names in TASK_DECODERS.items()),
    )
    in_chans: int = Field(3, ge=1, le=1024, description="channels of the images: 1 for grey, 3 for RGB, or any other")
    weights: tuple[str, ...] = Field(
        ("hub",),
        description="the first of these that can be had: hub, embedded, none, package:efficientnet-lite0, a file, "
        "models:/name@alias, runs:/id/path",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The models to choose from, as they were listed."""
        return (self.name,) if isinstance(self.name, str) else self.name

    @field_validator("name", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        if not value or not all(isinstance(name, str) and name for name in value):
            raise _problems(f"model.name: {list(value)!r} is not a timm model, nor a list of at least one")
        _refuse_twice("model.name", value)
        return tuple(value) if len(value) > 1 else value[0]

    @field_validator("weights", mode="before")
    @classmethod
    def _known_forms(cls, value: Any) -> tuple[str, ...]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not listed:
            raise _problems(f"model.weights: {value!r} is not one form of weights, nor a list of them")
        found = [f"model.weights: {message}" for form in listed if (message := _weights_problem(form))]
        if "none" in listed[:-1]:
            found.append(f"model.weights: {list(listed)!r}: what stands after none is never tried, put none last")
        if found:
            raise _problems(*found)
        return tuple(listed)


def _refuse_twice(key: str, listed: Sequence[str]) -> None:
    twice = next((one for one in listed if listed.count(one) > 1), None)
    if twice is not None:
        raise _problems(f"{key}: {twice!r} is there twice")


def _weights_problem(form: Any) -> str | None:
    packages = tuple(f"package:{name}" for name in WEIGHTS_PACKAGES)
    if isinstance(form, str):
        if form in ("hub", "embedded", "none", *packages) or form.lower().endswith(WEIGHTS_SUFFIXES):
            return None
        if form.startswith(("models:/", "runs:/")) and len(form.split(":/", 1)[1]) > 0:
            return None
    files = ", ".join(WEIGHTS_SUFFIXES)
    allowed = f"hub, embedded, none, {', '.join(packages)}, a file ({files}), models:/... or runs:/..."
    return f"{form!r} is not one of {allowed}"


class BudgetConfig(_Section):
    """When the search ends."""

    trials: int | None = Field(20, ge=1, description="trials in all, those of earlier runs included")
    hours: float | None = Field(
        None, gt=0, description="hours of this run, those of confirm in it; with trials, whichever ends first"
    )
    finish_trials: bool = Field(
        True, description="train what is running to its end when the hours are over; false: it goes on next time"
    )
    trial_minutes: float | None = Field(None, gt=0, description="minutes after which a trial is given up as failed")
    min_improvement: float | None = Field(
        None, gt=0, description="end when a better score than the best by so much can hardly be expected, in the metric"
    )

    @model_validator(mode="after")
    def _bounded(self) -> "BudgetConfig":
        if self.trials is None and self.hours is None:
            raise _problems("budget.trials: null, and budget.hours is null too; give one, or the search never ends")
        return self


class SamplerConfig(_Section):
    """How the next strategy is chosen."""

    name: Literal["tpe", "gp", "cmaes", "qmc", "random", "nsga2"] = Field("tpe", description="Optuna's sampler")
    startup_trials: int = Field(8, ge=0, description="trials drawn at random before the sampler learns")


class PrunerConfig(_Section):
    """When a hopeless trial is stopped."""

    name: Literal["median", "halving", "hyperband", "patient", "rungs", "none"] = Field(
        "median", description="Optuna's pruner; rungs pauses trials and goes on with the best, by the two keys below"
    )
    reduction: int = Field(3, ge=2, le=100, description="of so many trials at a rung the best goes on (rungs)")
    first_rung: int = Field(
        1, ge=1, description="epochs to the first rung; each next is reduction times as far (rungs)"
    )
    low_rung_images: float = Field(
        1.0, gt=0, le=1, description="share of the training images that each epoch up to the first rung sees (rungs)"
    )
    reports_per_epoch: int = Field(
        1, ge=1, le=100, description="validations in each epoch, so that a trial is stopped within a long one"
    )
    startup_trials: int = Field(5, ge=0, description="trials that run to their end before any is pruned")
    # Early scores under a high learning rate say little: python -m benchmarks.pruners.
    warmup_epochs: int = Field(4, ge=0, description="epochs after which a trial is stopped at the earliest")
    patience: int = Field(2, ge=0, description="epochs without improvement that pruner patient allows")

    @model_validator(mode="after")
    def _uses_short_epochs(self) -> "PrunerConfig":
        if self.low_rung_images < 1 and self.name != "rungs":
            raise _problems(
                f"pruner.low_rung_images: {self.low_rung_images:g} would not be used by pruner.name: {self.name}; "
                "only rungs has low rungs"
            )
        return self


class CheckpointsConfig(_Section):
    """Which checkpoints are kept."""

    keep: int = Field(3, ge=1, description="checkpoints of the best trials that are kept")
    every_minutes: float = Field(
        1.0, ge=0, description="minutes between states of a running trial, from which it goes on if killed; 0: none"
    )


class AfterConfig(_Section):
    """What is done with the weights that a search found."""

    wise_ft: bool = Field(False, description="try the winner's weights interpolated with those it started from")
    soups: bool = Field(False, description="try the mean of the checkpoints that are kept, and of the best of them")
    calibrate: bool = Field(True, description="fit a temperature, so that the winner's probabilities can be trusted")


class ConfirmConfig(_Section):
    """How the best strategies are tried again before one of them wins."""

    seeds: int = Field(0, ge=0, le=100, description="new seeds with which each of the best is trained again; 0: none")
    top: int = Field(3, ge=1, description="how many of the best; their checkpoints must be kept")


class ChampionConfig(_Section):
    """Which model is served, and what replaces it."""

    name: str | None = Field(None, description="registered model in MLflow; by default the study's name")
    promote: bool = Field(
        False, description="register the winner at the end, and make it the champion if it is better beyond chance"
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="how often an equal model may pass for a better or worse one at most"
    )
    max_slowdown: float | None = Field(
        None, gt=0, description="seconds an image of a new champion over those of the old one at most; null for any"
    )
    max_growth: float | None = Field(
        None, gt=0, description="numbers in a new champion over those in the old one at most; null for any"
    )


class HousekeepingConfig(_Section):
    """What nights remove."""

    days: float | None = Field(
        None, gt=0, description="checkpoints of trials that ended so many days ago, and caches unused since; null: none"
    )
    gib: float | None = Field(
        None, ge=0, description="bound of the studies' checkpoints, of which the oldest go first; null for none"
    )


class ExecutorConfig(_Section):
    """Who trains the trials."""

    name: Literal["auto", "inline", "local", "ray"] = Field(
        "auto",
        description="this process, worker processes of this machine, or a Ray cluster; by default what the keys below "
        "ask for, else local where there are several GPUs and inline where there is one device",
    )
    trials_per_device: Literal["auto"] | int = Field(
        1,
        description="trials trained at once on a device, each by a process of its own: 1 to 64, or auto, which "
        "measures (local)",
    )
    devices: Literal["auto"] | int | tuple[int, ...] = Field(
        "auto",
        description="GPUs of this machine: auto for all that may be used, a number, or a list of indices (local)",
    )
    address: Text | None = Field(
        None, description="cluster: auto, HOST:PORT or ray://HOST:PORT; null begins one on this machine (ray)"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=MOST_RAY_WORKERS,
        description="worker processes; null for as many as the cluster has room for (ray)",
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPU, or share of one, of each worker; null for a whole one where there are any (ray)",
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="amounts of the cluster's custom resources that each worker needs (ray)"
    )
    placement: Literal["pack", "spread"] = Field(
        "pack", description="fill one node after the other with workers, or spread them over nodes (ray)"
    )

    gpus_per_trial: int = Field(
        1, ge=1, le=MOST_WORKERS, description="GPUs that train each trial together; on a CPU, processes"
    )

    @model_validator(mode="before")
    @classmethod
    def _name_follows(cls, values: Any) -> Any:
        """Whoever sets a key that one executor alone knows wants that one."""
        if not isinstance(values, Mapping) or "name" in values:
            return values
        asked = [name for name, keys in EXECUTOR_KEYS.items() if any(_is_set(cls, values, key) for key in keys)]
        return {**values, "name": asked[0]} if asked else values

    @field_validator("trials_per_device", mode="before")
    @classmethod
    def _is_a_count(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and 1 <= value <= MOST_WORKERS):
            return value
        hint = f"; {nearest(value, ('auto',))}" if isinstance(value, str) else ""
        if type(value) is int:
            hint = f"; the nearest is {min(max(value, 1), MOST_WORKERS)}"
        raise _problems(
            f"executor.trials_per_device: {value!r} is neither auto nor a whole number from 1 to {MOST_WORKERS}{hint}"
        )

    @field_validator("devices", mode="before")
    @classmethod
    def _are_devices(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and value >= 1):
            return value
        if isinstance(value, list | tuple) and value and all(type(one) is int and one >= 0 for one in value):
            _refuse_twice("executor.devices", value)
            return tuple(value)
        hint = f"; {nearest(value, ('auto',))}" if isinstance(value, str) else ""
        raise _problems(
            f"executor.devices: {value!r} is neither auto, nor how many GPUs, nor a list of their indices{hint}"
        )

    @field_validator("resources")
    @classmethod
    def _are_amounts(cls, value: dict[str, float]) -> dict[str, float]:
        own = {"CPU": "threads", "GPU": "executor.gpus"}
        found = [f"executor.resources.{name}: is what {own[name]} says; leave it out" for name in own if name in value]
        found += [
            f"executor.resources.{name}: {amount:g} is not above 0" for name, amount in value.items() if amount <= 0
        ]
        if found:
            raise _problems(*found)
        return value

    @model_validator(mode="after")
    def _uses_its_keys(self) -> "ExecutorConfig":
        found = [
            f"executor.{key}: {getattr(self, key)!r} would not be used by executor.name: {self.name}; only {name} does"
            for name, keys in EXECUTOR_KEYS.items()
            for key in keys
            if name != self.name and getattr(self, key) != _default_of(type(self), key)
        ]
        if found:
            raise _problems(*found)
        return self

    @property
    def may_be_one_process(self) -> bool:
        """Whether the command may train by itself."""
        return self.name in ("auto", "inline")


def _default_of(section: type[BaseModel], key: str) -> Any:
    return section.model_fields[key].get_default(call_default_factory=True)


def _is_set(section: type[BaseModel], values: Mapping[str, Any], key: str) -> bool:
    return key in values and values[key] != _default_of(section, key)


class StoreConfig(_Section):
    """Where Optuna keeps the study."""

    url: Text = Field(
        "sqlite:///mlruns/optuna.db",
        description="database of the study, such as postgresql://..., or grpc://HOST:PORT of a proxy",
    )

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if "://" not in value:
            raise _problems(f"store.url: {value!r} is not a database URL such as sqlite:///mlruns/optuna.db")
        return value


class TrackingConfig(_Section):
    """Where MLflow keeps runs and artifacts."""

    uri: Text = Field("sqlite:///mlruns/mlflow.db", description="MLflow store or server")
    artifacts: Text = Field("mlruns/artifacts", description="folder of the artifacts; a server may have its own")


class StudyConfig(_Section):
    """All that a study file and the command line can say."""

    name: str | None = Field(None, description="study and MLflow experiment; by default the study file's name")
    description: str = Field("", description="one line for listings")
    task: Literal["classification", "multilabel", "regression", "segmentation", "detection"] = Field(
        "classification",
        description="what is learnt: one class an image, any number of classes, numbers, a class a pixel, or boxes",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of sampling and of training")
    data: DataConfig = Field(default_factory=DataConfig, description="which images, and how they are split")
    model: ModelConfig = Field(default_factory=ModelConfig, description="which model, from which weights")
    strategy: dict[str, Any] = Field(
        default_factory=lambda: deepcopy(DEFAULT_SPACE),
        description="per field a plain value, {low, high, log, step} or {choices: [...]}",
    )
    centre_lr: bool = Field(
        False, description="move the range of strategy.lr to where a learning-rate range test of full fine-tuning says"
    )
    teacher: Text | None = Field(
        None, description="classifier to learn from with strategy.distill_weight: models:/name@alias, runs:/id/path"
    )
    presets: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: deepcopy(DEFAULT_PRESETS),
        description="named strategies that are tried first; {} for none",
    )
    budget: BudgetConfig = Field(default_factory=BudgetConfig, description="when the search ends")
    metric: str = Field(
        "accuracy",
        description="validation metric that decides, by default the first of the task's: "
        + "; ".join(f"{task}: {', '.join(names)}" for task, names in TASK_METRICS.items()),
    )
    costs: tuple[Cost, ...] = Field(
        (), description="what is minimised beside the metric, for a Pareto front; nothing is pruned then"
    )
    probe_sweep: int = Field(
        64, ge=0, description="linear probes trained together before the first trial, to seed the presets; 0 for none"
    )
    reuse: Literal["auto", "on", "off"] = Field(
        "auto", description="read what the frozen part of a model gives from a cache: where that pays, always, or never"
    )
    reuse_gib: float = Field(20.0, ge=0, description="bound of that cache, which lies in data.cache")
    compile: Literal["off", "default", "reduce-overhead"] = Field(
        "off", description="torch.compile for forward and backward passes; reduce-overhead: as CUDA graphs"
    )
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="how the next strategy is chosen")
    pruner: PrunerConfig = Field(default_factory=PrunerConfig, description="when a hopeless trial is stopped")
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig, description="which are kept")
    after: AfterConfig = Field(default_factory=AfterConfig, description="what is done with the weights found")
    confirm: ConfirmConfig = Field(
        default_factory=ConfirmConfig, description="how the best are tried again before one wins"
    )
    champion: ChampionConfig = Field(default_factory=ChampionConfig, description="which model is served")
    housekeeping: HousekeepingConfig = Field(default_factory=HousekeepingConfig, description="what nights remove")
    retries: int = Field(2, ge=0, description="times that a killed trial is tried again")
    store: StoreConfig = Field(default_factory=StoreConfig, description="where Optuna keeps the study")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="where MLflow keeps runs")
    executor: ExecutorConfig = Field(default_factory=ExecutorConfig, description="who trains the trials")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="number format of the training")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; null leaves it to torch")

    def space(self) -> dict[str, Entry]:
        """The strategy section, parsed."""
        return parse_space(self.strategy)

    @property
    def is_in_memory(self) -> bool:
        """Whether Optuna's store is in the memory of the process that opens it."""
        return self.store.url.rstrip("/").endswith(":")

    @model_validator(mode="before")
    @classmethod
    def _follows_task(cls, values: Any) -> Any:
        """Metric and loss that nobody chose are those of the task."""
        task = values.get("task") if isinstance(values, Mapping) else None
        if not isinstance(task, str) or task not in TASK_METRICS:
            return values
        filled = {"metric": TASK_METRICS[task][0], **values}
        space = filled.get("strategy", DEFAULT_SPACE)
        if task != "classification" and isinstance(space, Mapping) and "loss" not in space:
            filled["strategy"] = {**space, "loss": TASK_LOSSES[task][0]}
        data, model = filled.get("data", {}), filled.get("model", {})
        if task in TASK_DECODERS and isinstance(data, Mapping) and (source := _dense_source(task, data)) is not None:
            filled["data"] = {**data, "source": source}
        if task in TASK_DECODERS and isinstance(model, Mapping) and model.get("decoder") is None:
            filled["model"] = {**model, "decoder": TASK_DECODERS[task][0]}
        return filled

    @model_validator(mode="before")
    @classmethod
    def _follows_costs(cls, values: Any) -> Any:
        """With costs, a pruner that nobody chose is none."""
        if not isinstance(values, Mapping) or not values.get("costs"):
            return values
        pruner = values.get("pruner", {})
        if not isinstance(pruner, Mapping) or "name" in pruner:
            return values
        return {**values, "pruner": {**pruner, "name": "none"}}

    @field_validator("model")
    @classmethod
    def _decodes_for_task(cls, value: ModelConfig, info: ValidationInfo) -> ModelConfig:
        task = info.data.get("task", "classification")
        known = TASK_DECODERS.get(task, ())
        if value.decoder is not None and not known:
            raise _problems(f"model.decoder: {value.decoder!r} would not be used by task {task}; leave it out")
        if value.decoder is not None and value.decoder not in known:
            raise _problems(
                f"model.decoder: {value.decoder!r} is not one of {', '.join(known)}{_close(value.decoder, known)}"
            )
        return value

    @field_validator("metric")
    @classmethod
    def _scores_task(cls, value: str, info: ValidationInfo) -> str:
        known = TASK_METRICS[info.data.get("task", "classification")]
        if value not in known:
            raise _problems(f"metric: {value!r} is not one of {', '.join(known)}{_close(value, known)}")
        return value

    @field_validator("costs", mode="before")
    @classmethod
    def _are_costs(cls, value: Any) -> tuple[str, ...]:
        known = get_args(Cost)
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple):
            raise _problems(f"costs: {value!r} is not a list of {', '.join(known)}")
        unknown = [one for one in listed if one not in known]
        if unknown:
            raise _problems(
                *(f"costs: {one!r} is not one of {', '.join(known)}{_close(one, known)}" for one in unknown)
            )
        _refuse_twice("costs", listed)
        # One order, whatever the user's: the study keeps values by their place.
        return tuple(cost for cost in known if cost in listed)

    @field_validator("sampler")
    @classmethod
    def _samples_costs(cls, value: SamplerConfig, info: ValidationInfo) -> SamplerConfig:
        if info.data.get("costs") and value.name in ONE_OBJECTIVE_SAMPLERS:
            able = [name for name in get_args(SamplerConfig.model_fields["name"].annotation) if name != value.name]
            raise _problems(
                f"sampler.name: {value.name!r} cannot search with costs, Optuna allows it one objective only; "
                f"choose one of {', '.join(able)}"
            )
        return value

    @field_validator("pruner")
    @classmethod
    def _prunes_no_costs(cls, value: PrunerConfig, info: ValidationInfo) -> PrunerConfig:
        if info.data.get("costs") and value.name != "none":
            raise _problems(
                f"pruner.name: {value.name!r} cannot stop trials of a study with costs, Optuna prunes by one objective "
                "only; leave it out or say none"
            )
        return value

    @field_validator("pruner")
    @classmethod
    def _has_a_rung(cls, value: PrunerConfig, info: ValidationInfo) -> PrunerConfig:
        space = info.data.get("strategy")
        if value.name == "rungs" and space is not None:
            epochs = max(_values(parse_space(space), "epochs"))
            if value.first_rung >= epochs:
                raise _problems(
                    f"pruner.first_rung: {value.first_rung} is not below strategy.epochs: {epochs}, so no trial would "
                    "be paused; give a smaller one, or more epochs"
                )
        return value

    @field_validator("centre_lr")
    @classmethod
    def _has_rates(cls, value: bool, info: ValidationInfo) -> bool:
        space = info.data.get("strategy")
        if value and space is not None:
            rates = parse_space(space).get("lr")
            if not isinstance(rates, FloatRange) or not rates.log:
                raise _problems(
                    "centre_lr: strategy.lr must be a range on a log scale: {low: ..., high: ..., log: true}"
                )
        return value

    @field_validator("teacher")
    @classmethod
    def _is_logged(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not re.match(r"(models|runs):/.", value):
            raise _problems(f"teacher: {value!r} is not a model that MLflow has: models:/... or runs:/...")
        if value is not None and info.data.get("task", "classification") != "classification":
            raise _problems(f"teacher: task {info.data['task']} cannot learn from one, only classification can")
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
            expected = "letters, digits, '.', '_' and '-' (at most 100, the first neither '.' nor '-')"
            raise _problems(f"name: {value!r} is not made of {expected}; give another with name=...")
        return value

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value, re.ASCII):
            hint = nearest(value, ("auto", "cpu", "cuda", "cuda:N", "mps"))
            raise _problems(f"device: {value!r} is not a device; {hint}")
        return value

    @field_validator("strategy", mode="before")
    @classmethod
    def _is_space(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            raise _problems(f"strategy: {value!r} is not a mapping of strategy fields to values or ranges")
        found: list[str] = []
        space: dict[str, Entry] = {}
        for name, spec in value.items():
            try:
                space |= parse_space({name: spec})
            except ConfigError as error:
                found.append(str(error))
        for name, what in (("warmup_epochs", "warm-up"), ("unfreeze_epochs", "unfreezing")):
            if not found and max(_values(space, name)) > min(_values(space, "epochs")):
                found.append(f"strategy.{name}: can exceed strategy.epochs; {what} must fit into the training")
        if not found:
            found += _unfit_losses("strategy.loss", _values(space, "loss"), info)
        if found:
            raise _problems(*found)
        return value

    @field_validator("presets", mode="before")
    @classmethod
    def _are_strategies(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            raise _problems(f"presets: {value!r} is not a mapping of names to strategies; {{}} is none")
        found = []
        for name, preset in value.items():
            if not isinstance(name, str) or not isinstance(preset, Mapping):
                found.append(f"presets.{name}: {preset!r} is not a name with a mapping of strategy fields to values")
                continue
            try:
                Strategy.from_dict(preset)
            except ConfigError as error:
                found.append(f"presets.{name}{str(error).removeprefix('strategy')}")
                continue
            # A preset that names no loss takes one of the space.
            if "loss" in preset:
                found += _unfit_losses(f"presets.{name}.loss", [preset["loss"]], info)
        if found:
            raise _problems(*found)
        return value

    @model_validator(mode="after")
    def _keeps_what_may_win(self) -> "StudyConfig":
        if self.confirm.seeds and self.confirm.top > self.checkpoints.keep:
            raise _problems(
                f"confirm.top: {self.confirm.top} is more than checkpoints.keep: {self.checkpoints.keep}, so that a "
                "winner's weights might be gone; keep as many, or confirm fewer"
            )
        return self

    @model_validator(mode="after")
    def _can_expect_improvement(self) -> "StudyConfig":
        threshold = self.budget.min_improvement
        if threshold is not None and self.costs:
            raise _problems(
                f"budget.min_improvement: {threshold:g} cannot end a study with costs, Optuna estimates it for one "
                "objective only; leave it out"
            )
        if (
            threshold is not None
            and len(self.model.names) == 1
            and all(isinstance(entry, Fixed) for entry in self.space().values())
        ):
            raise _problems(
                f"budget.min_improvement: {threshold:g} needs something to search, and strategy has neither ranges nor "
                "choices; leave it out"
            )
        return self

    def to_show(self) -> dict[str, Any]:
        """Its content, which makes an equal one but for the passwords, which are left out."""
        content = self.model_dump(mode="json")
        content["store"]["url"] = without_password(self.store.url)
        content["tracking"]["uri"] = without_password(self.tracking.uri)
        return content

    @model_validator(mode="after")
    def _can_be_shared(self) -> "StudyConfig":
        executor = self.executor
        if not executor.may_be_one_process and self.is_in_memory:
            several = executor.trials_per_device != 1
            what = f"trials_per_device: {executor.trials_per_device!r}" if several else f"name: {executor.name}"
            raise _problems(
                f"executor.{what} needs a store that processes can share; store.url: {self.store.url!r} is in the "
                "memory of one"
            )
        return self

    @model_validator(mode="after")
    def _can_be_placed(self) -> "StudyConfig":
        executor, device = self.executor, self.device
        if executor.devices != "auto" and device not in ("auto", "cuda"):
            raise _problems(
                f"executor.devices: {executor.devices!r} would choose among GPUs, and device: {device} has chosen "
                "already; leave one of both out"
            )
        if executor.name == "ray" and device not in ("auto", "cuda", "cpu"):
            raise _problems(
                f"device: {device!r} cannot be had of executor.name: ray, which chooses itself; say cuda or cpu"
            )
        if executor.gpus is not None and executor.gpus_per_trial > 1:
            raise _problems(
                f"executor.gpus: {executor.gpus:g} and executor.gpus_per_trial: {executor.gpus_per_trial} do not go "
                "together; leave one of both out"
            )
        if executor.gpus and device == "cpu":
            raise _problems(f"executor.gpus: {executor.gpus:g} would not be used by device: cpu; leave one of both out")
        return self

    @model_validator(mode="after")
    def _has_gpus_of_its_own(self) -> "StudyConfig":
        executor = self.executor
        if executor.gpus_per_trial > 1 and executor.trials_per_device != 1:
            raise _problems(
                f"executor.gpus_per_trial: {executor.gpus_per_trial} GPUs a trial and executor.trials_per_device: "
                f"{executor.trials_per_device!r} trials a GPU do not go together; leave one of them at 1"
            )
        return self

    @model_validator(mode="after")
    def _has_soup_members(self) -> "StudyConfig":
        if self.after.soups and self.checkpoints.keep < 2:
            raise _problems(f"after.soups: a soup needs checkpoints.keep of at least 2, it is {self.checkpoints.keep}")
        return self


def _dense_source(task: str, data: Mapping[str, Any]) -> str | None:
    """Where masks or boxes come from if nobody says; None where the keys say it."""
    given = [key for key in _PLACE_KEYS if data.get(key)]
    if "source" in data or set(given) - {"root"}:
        return None
    if not given:
        return "scenes"
    return "voc" if task == "detection" else None


def _close(value: Any, known: Sequence[str]) -> str:
    """A hint at the name that was meant; empty if none is close."""
    hint = nearest(str(value), known)
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _unfit_losses(key: str, losses: Sequence[str], info: ValidationInfo) -> list[str]:
    """A line for the first loss that cannot train the study's task."""
    task = info.data.get("task", "classification")
    wrong = [loss for loss in losses if loss not in TASK_LOSSES[task]]
    return [f"{key}: {wrong[0]!r} cannot train task {task}; expected {' or '.join(TASK_LOSSES[task])}"] if wrong else []


def _values(space: Mapping[str, Entry], name: str) -> tuple[Any, ...]:
    match space.get(name, Fixed(getattr(Strategy(), name))):
        case Fixed(value=value):
            return (value,)
        case Choice(choices=choices):
            return choices
        case IntRange(low=low, high=high) | FloatRange(low=low, high=high):
            return (low, high)
