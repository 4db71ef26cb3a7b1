"""The typed configuration of a study: every key with its type, bounds, default and help line."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from search.config.checks import (
    crowded_gpus,
    missing_soups,
    unfit_losses,
    unkept_winners,
    unusable_devices,
    useless_thresholds,
    values_of,
)
from search.config.data import DataConfig, dense_source
from search.config.defaults import DEFAULT_PRESETS, DEFAULT_SPACE, TASK_DECODERS, TASK_METRICS
from search.config.executor import ExecutorConfig
from search.config.model import ModelConfig
from search.config.places import ChampionConfig, HousekeepingConfig, ServeConfig, StoreConfig, TrackingConfig
from search.config.section import MANY, Section, Text, close_hint, problems, refuse_twice
from search.config.sections import (
    ONE_OBJECTIVE_SAMPLERS,
    AfterConfig,
    BudgetConfig,
    CheckpointsConfig,
    ConfirmConfig,
    Cost,
    PrunerConfig,
    SamplerConfig,
)
from search.config.urls import without_password
from strategies import (
    TASK_LOSSES,
    ConfigError,
    Entry,
    FloatRange,
    Strategy,
    nearest,
    parse_space,
)


class StudyConfig(Section):
    """The whole configuration of a study."""

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
        description="for each field a plain value, {low, high, log, step} or {choices: [...]}",
    )
    centre_lr: bool = Field(
        False,
        description="centre the range of strategy.lr on the result of a learning-rate range test of full fine-tuning",
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
        description="validation metric by which trials are ranked, by default the first of the task's: "
        + "; ".join(f"{task}: {', '.join(names)}" for task, names in TASK_METRICS.items()),
    )
    costs: tuple[Cost, ...] = Field(
        (), description="costs to minimise beside the metric, for a Pareto front; then nothing is pruned"
    )
    probe_sweep: int = Field(
        64,
        ge=0,
        le=10_000,
        description="linear probes trained together before the first trial, to seed the presets; 0 for none",
    )
    reuse: Literal["auto", "on", "off"] = Field(
        "auto", description="read the outputs of a model's frozen part from a cache: where that pays, always, or never"
    )
    reuse_gib: float = Field(20.0, ge=0, le=MANY, description="limit of that cache, which is in data.cache")
    compile: Literal["off", "default", "reduce-overhead"] = Field(
        "off", description="torch.compile for forward and backward passes; reduce-overhead: with CUDA graphs"
    )
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="how the next strategy is chosen")
    pruner: PrunerConfig = Field(default_factory=PrunerConfig, description="when a hopeless trial is stopped")
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig, description="which checkpoints are kept")
    after: AfterConfig = Field(default_factory=AfterConfig, description="what is done with the weights that were found")
    confirm: ConfirmConfig = Field(
        default_factory=ConfirmConfig, description="how the best strategies are trained again before one wins"
    )
    champion: ChampionConfig = Field(default_factory=ChampionConfig, description="which model is served")
    serve: ServeConfig = Field(
        default_factory=ServeConfig, description="what the logged model takes, and how it computes"
    )
    housekeeping: HousekeepingConfig = Field(
        default_factory=HousekeepingConfig, description="what nightly searches remove"
    )
    retries: int = Field(2, ge=0, le=1000, description="how many times a killed trial is tried again")
    store: StoreConfig = Field(default_factory=StoreConfig, description="where Optuna keeps the study")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="where MLflow keeps runs")
    executor: ExecutorConfig = Field(default_factory=ExecutorConfig, description="who trains the trials")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="number format in training; fp16 for GPUs that cannot compute in bf16, such as V100 and T4",
    )
    deterministic: bool = Field(
        False,
        description="the same seed gives the same scores on a GPU too; slower, and a trial fails at an operation that "
        "cannot be repeated exactly",
    )
    # Where torch cannot make a thread, it ends the process.
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of torch; null leaves it to torch")

    def space(self) -> dict[str, Entry]:
        """The strategy section, parsed."""
        return parse_space(self.strategy)

    @model_validator(mode="before")
    @classmethod
    def _follows_task(cls, values: Any) -> Any:
        """A metric, loss, source or decoder that is not given follows from the task."""
        task = values.get("task") if isinstance(values, Mapping) else None
        if not isinstance(task, str) or task not in TASK_METRICS:
            return values
        filled = {"metric": TASK_METRICS[task][0], **values}
        space = filled.get("strategy", DEFAULT_SPACE)
        if task != "classification" and isinstance(space, Mapping) and "loss" not in space:
            filled["strategy"] = {**space, "loss": TASK_LOSSES[task][0]}
        data, model = filled.get("data", {}), filled.get("model", {})
        if task in TASK_DECODERS and isinstance(data, Mapping) and (source := dense_source(task, data)) is not None:
            filled["data"] = {**data, "source": source}
        if task in TASK_DECODERS and isinstance(model, Mapping) and model.get("decoder") is None:
            filled["model"] = {**model, "decoder": TASK_DECODERS[task][0]}
        return filled

    @model_validator(mode="before")
    @classmethod
    def _follows_costs(cls, values: Any) -> Any:
        """With costs, the pruner is none where it is not given."""
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
        allowed = TASK_DECODERS.get(task, ())
        if value.decoder is not None and not allowed:
            raise problems(f"model.decoder: {value.decoder!r} would not be used by task {task}; leave it out")
        if value.decoder is not None and value.decoder not in allowed:
            raise problems(
                f"model.decoder: {value.decoder!r} is not one of {', '.join(allowed)}"
                f"{close_hint(value.decoder, allowed)}"
            )
        return value

    @field_validator("metric")
    @classmethod
    def _scores_task(cls, value: str, info: ValidationInfo) -> str:
        allowed = TASK_METRICS[info.data.get("task", "classification")]
        if value not in allowed:
            raise problems(f"metric: {value!r} is not one of {', '.join(allowed)}{close_hint(value, allowed)}")
        return value

    @field_validator("costs", mode="before")
    @classmethod
    def _are_costs(cls, value: Any) -> tuple[str, ...]:
        allowed = get_args(Cost)
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple):
            raise problems(f"costs: {value!r} is not a list of {', '.join(allowed)}")
        unknown = [one for one in listed if one not in allowed]
        if unknown:
            raise problems(
                *(f"costs: {one!r} is not one of {', '.join(allowed)}{close_hint(one, allowed)}" for one in unknown)
            )
        refuse_twice("costs", listed)
        # Always in the same order: the study stores values by their index.
        return tuple(cost for cost in allowed if cost in listed)

    @field_validator("sampler")
    @classmethod
    def _samples_costs(cls, value: SamplerConfig, info: ValidationInfo) -> SamplerConfig:
        if info.data.get("costs") and value.name in ONE_OBJECTIVE_SAMPLERS:
            able = [name for name in get_args(SamplerConfig.model_fields["name"].annotation) if name != value.name]
            raise problems(
                f"sampler.name: {value.name!r} cannot search with costs, Optuna allows it one objective only; "
                f"choose one of {', '.join(able)}"
            )
        return value

    @field_validator("pruner")
    @classmethod
    def _prunes_no_costs(cls, value: PrunerConfig, info: ValidationInfo) -> PrunerConfig:
        if info.data.get("costs") and value.name != "none":
            raise problems(
                f"pruner.name: {value.name!r} cannot stop trials of a study with costs, Optuna prunes by one objective "
                "only; leave it out or say none"
            )
        return value

    @field_validator("pruner")
    @classmethod
    def _has_a_rung(cls, value: PrunerConfig, info: ValidationInfo) -> PrunerConfig:
        space = info.data.get("strategy")
        if value.name == "rungs" and space is not None:
            epochs = max(values_of(parse_space(space), "epochs"))
            if value.first_rung >= epochs:
                raise problems(
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
                raise problems(
                    "centre_lr: strategy.lr must be a range on a log scale: {low: ..., high: ..., log: true}"
                )
        return value

    @field_validator("teacher")
    @classmethod
    def _is_logged(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not re.match(r"(models|runs):/.", value):
            raise problems(f"teacher: {value!r} is not a model that MLflow has: models:/... or runs:/...")
        if value is not None and info.data.get("task", "classification") != "classification":
            raise problems(f"teacher: task {info.data['task']} cannot learn from one, only classification can")
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
            expected = "letters, digits, '.', '_' and '-' (at most 100, the first neither '.' nor '-')"
            raise problems(f"name: {value!r} is not made of {expected}; give another with name=...")
        return value

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?|mps", value, re.ASCII):
            hint = nearest(value, ("auto", "cpu", "cuda", "cuda:N", "mps"))
            raise problems(f"device: {value!r} is not a device; {hint}")
        return value

    @field_validator("strategy", mode="before")
    @classmethod
    def _is_space(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            raise problems(f"strategy: {value!r} is not a mapping of strategy fields to values or ranges")
        found: list[str] = []
        space: dict[str, Entry] = {}
        for name, spec in value.items():
            try:
                space |= parse_space({name: spec})
            except ConfigError as error:
                found.append(str(error))
        for name, what in (("warmup_epochs", "warm-up"), ("unfreeze_epochs", "unfreezing")):
            if not found and max(values_of(space, name)) > min(values_of(space, "epochs")):
                found.append(f"strategy.{name}: can exceed strategy.epochs; {what} must fit into the training")
        if not found:
            found += unfit_losses("strategy.loss", values_of(space, "loss"), info.data.get("task", "classification"))
        if found:
            raise problems(*found)
        return value

    @field_validator("presets", mode="before")
    @classmethod
    def _are_strategies(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            raise problems(f"presets: {value!r} is not a mapping of names to strategies; {{}} is none")
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
            # A preset without a loss takes one from the space.
            if "loss" in preset:
                found += unfit_losses(f"presets.{name}.loss", [preset["loss"]], info.data.get("task", "classification"))
        if found:
            raise problems(*found)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "StudyConfig":
        found = [
            *unkept_winners(self.confirm, self.checkpoints),
            *useless_thresholds(self.budget, self.costs, self.model, self.space()),
            *unusable_devices(self.executor, self.device),
            *crowded_gpus(self.executor),
            *missing_soups(self.after, self.checkpoints),
        ]
        if found:
            raise problems(*found)
        return self

    def to_show(self) -> dict[str, Any]:
        """The content without passwords; apart from them, it makes an equal configuration."""
        content = self.model_dump(mode="json")
        content["store"]["url"] = without_password(self.store.url)
        content["tracking"]["uri"] = without_password(self.tracking.uri)
        return content
