"""The configuration's sections of the search itself: budget, sampler, pruner, checkpoints, confirm, after."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from search.config.section import MANY, Section, problems

Cost = Literal["seconds", "parameters_trained"]


#: Keys of the budget that say when a search ends; each replaces the others.
TIMES = ("minutes", "hours", "until")

# Of Optuna's samplers, those that refuse a study with more than one objective.
ONE_OBJECTIVE_SAMPLERS = ("cmaes",)


class BudgetConfig(Section):
    """When the search ends."""

    trials: int | None = Field(20, ge=1, le=MANY, description="trials in all, with those of earlier runs")
    minutes: float | None = Field(
        None,
        gt=0,
        le=MANY,
        description="minutes of this run, from its start to the winner; with trials, whichever limit comes first",
    )
    hours: float | None = Field(None, gt=0, le=MANY, description="the same in hours")
    until: str | None = Field(
        None, description="the same as a time of day by this machine's clock, such as 07:00; the next one that comes"
    )
    finish_trials: bool | None = Field(
        None,
        description="train running trials to their end when the time is over; false: they resume in the next run; "
        "null: true as long as no trial has completed",
    )
    trial_minutes: float | None = Field(
        None, gt=0, le=MANY, description="minutes after which a trial is stopped as failed"
    )
    min_improvement: float | None = Field(
        None,
        gt=0,
        le=MANY,
        description="end when the best score can hardly be improved by so much any more, in the metric; null: 0.001 "
        "with sampler.name learned, else no such end",
    )

    @field_validator("until", mode="before")
    @classmethod
    def _is_time_of_day(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and 60 <= value < 24 * 60:
            # YAML 1.1 reads 23:30 without quotes as a number to the base of 60.
            value = f"{value // 60:02}:{value % 60:02}"
        if value is None or (isinstance(value, str) and re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", value, re.ASCII)):
            return value
        raise problems(f"budget.until: {value!r} is not a time of day such as 07:00 or 23:30")

    @model_validator(mode="after")
    def _bounded(self) -> "BudgetConfig":
        given = [f"budget.{name}: {value}" for name in TIMES if (value := getattr(self, name)) is not None]
        if len(given) > 1:
            raise problems(f"{' and '.join(given)} both say when the search ends; give one of them")
        if self.trials is None and not given:
            raise problems(
                "budget.trials: null, and so are budget.minutes, budget.hours and budget.until; give one, or the "
                "search never ends"
            )
        return self

    @property
    def seconds(self) -> float | None:
        """Seconds of a run that ``minutes`` or ``hours`` allow; None without them."""
        if self.minutes is not None:
            return self.minutes * 60
        return None if self.hours is None else self.hours * 3600


class SamplerConfig(Section):
    """How the next strategy is chosen."""

    name: Literal["learned", "tpe", "gp", "cmaes", "qmc", "random", "nsga2"] = Field(
        "tpe",
        description="learned: by what fine-tunings elsewhere have taught, for classification; or Optuna's sampler",
    )
    startup_trials: int = Field(8, ge=0, le=MANY, description="trials drawn at random before the sampler learns")


class PrunerConfig(Section):
    """When a hopeless trial is stopped."""

    name: Literal["auto", "median", "halving", "hyperband", "patient", "rungs", "none"] = Field(
        "auto",
        description="auto: with sampler.name learned trials pause and resume as it says, else median; or Optuna's "
        "pruner; rungs pauses trials and resumes the best, by the two keys below",
    )
    reduction: int = Field(3, ge=2, le=100, description="of so many trials at a rung the best is resumed (rungs)")
    first_rung: int = Field(
        1, ge=1, le=MANY, description="epochs to the first rung; each next rung is reduction times as far (rungs)"
    )
    low_rung_images: float = Field(
        1.0, gt=0, le=1, description="share of the training images in each epoch up to the first rung (rungs)"
    )
    reports_per_epoch: int = Field(
        1, ge=1, le=100, description="validations in each epoch, so that a trial is stopped within a long one"
    )
    startup_trials: int = Field(5, ge=0, le=MANY, description="trials that run to their end before any trial is pruned")
    # Early scores under a high learning rate say little: python -m benchmarks.pruners.
    warmup_epochs: int = Field(4, ge=0, le=MANY, description="epochs before a trial can be stopped")
    patience: int = Field(2, ge=0, le=MANY, description="epochs without improvement that pruner patient allows")

    @model_validator(mode="after")
    def _uses_short_epochs(self) -> "PrunerConfig":
        if self.low_rung_images < 1 and self.name != "rungs":
            raise problems(
                f"pruner.low_rung_images: {self.low_rung_images:g} would not be used by pruner.name: {self.name}; "
                "only rungs has low rungs"
            )
        return self


class CheckpointsConfig(Section):
    """Which checkpoints are kept."""

    keep: int = Field(3, ge=1, le=MANY, description="how many of the best trials keep their checkpoints")
    every_minutes: float = Field(
        1.0,
        ge=0,
        le=MANY,
        description="minutes between snapshots of a running trial, from which it resumes if killed; 0: none",
    )


class AfterConfig(Section):
    """What is done with the weights that a search has found."""

    wise_ft: bool = Field(False, description="try the winner's weights interpolated with its initial ones")
    soups: bool = Field(False, description="try the mean of all kept checkpoints, and of the best of them")
    calibrate: bool = Field(True, description="fit a temperature, so that the winner's probabilities are calibrated")


class ConfirmConfig(Section):
    """How the best strategies are trained again before one of them wins."""

    seeds: int = Field(
        0, ge=0, le=100, description="new seeds with which each of the best strategies is trained again; 0: none"
    )
    top: int = Field(3, ge=1, le=1000, description="how many of the best strategies; their checkpoints must be kept")
