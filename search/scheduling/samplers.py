"""Optuna's samplers and pruners by name, and a study's sampler, which is one of them for each trial."""

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import (
    BasePruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from search.config import PrunerConfig, SamplerConfig
from search.scheduling.original_order import as_uninterrupted
from search.scheduling.rungs import RungPruner, Rungs
from search.storage import PREDICTED, Hyperband, PlacedQMC


def _tpe(seed: int, startup: int) -> BaseSampler:
    return TPESampler(n_startup_trials=startup, multivariate=True, group=True, constant_liar=True, seed=seed)


def _median(config: PrunerConfig) -> BasePruner:
    return MedianPruner(
        n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs * config.reports_per_epoch
    )


SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    # Draws fields that the planner leaves open, and everything where the learnt policy does not know the task.
    "learned": _tpe,
    "tpe": _tpe,
    "gp": lambda seed, startup: GPSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False),
    "cmaes": lambda seed, startup: CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False),
    "random": lambda seed, startup: RandomSampler(seed=seed),
    "nsga2": lambda seed, startup: NSGAIISampler(seed=seed),
}

# Optuna's pruners count reports, our keys count epochs.
PRUNERS: dict[str, Callable[[PrunerConfig], BasePruner]] = {
    # Asked only where no planner pauses trials.
    "auto": _median,
    "median": _median,
    "halving": lambda config: _Uninterrupted(
        SuccessiveHalvingPruner(min_resource=max(1, config.warmup_epochs) * config.reports_per_epoch)
    ),
    "hyperband": lambda config: _Uninterrupted(
        Hyperband(min_resource=max(1, config.warmup_epochs) * config.reports_per_epoch)
    ),
    "patient": lambda config: PatientPruner(None, patience=config.patience * config.reports_per_epoch),
    "rungs": lambda config: RungPruner(Rungs.of(config)),
    "none": lambda config: NopPruner(),
}


def make_sampler(config: SamplerConfig, seed: int, place: int) -> BaseSampler:
    """The sampler for one trial, whose random state follows from the study's seed and the trial's place.

    QMC has one sequence for all trials, and a trial takes the point of its place.
    """
    if config.name == "qmc":
        return PlacedQMC(seed, place)
    state = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    return SAMPLERS[config.name](state, config.startup_trials)


class StudySampler(BaseSampler):
    """The sampler of a study: a new :func:`make_sampler` for each trial.

    A trial that is begun again after a kill draws the same, since neither its place nor the trials before it have
    changed.

    Args:
        config: Which sampler it is.
        seed: Seed of the study.
    """

    def __init__(self, config: SamplerConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._number: int | None = None
        self._begun: tuple[BaseSampler, Study, FrozenTrial] | None = None

    def _begin(self, study: Study, trial: FrozenTrial) -> tuple[BaseSampler, Study, FrozenTrial]:
        """The trial's sampler, and the study and trial that it sees. The study's lock is held while a trial draws."""
        if self._begun is None or self._number != trial.number:
            study, placed = as_uninterrupted(study, trial)
            self._begun = make_sampler(self._config, self._seed, placed.number), study, placed
            self._number = trial.number
        return self._begun

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The fields that are drawn together; none where the learnt policy has queued the trial with all of them."""
        if PREDICTED in trial.user_attrs:
            # Optuna asks for queued trials too, for which TPE would take seconds in a study of thousands of trials.
            return {}
        sampler, study, trial = self._begin(study, trial)
        return sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the fields that are drawn together."""
        if PREDICTED in trial.user_attrs:
            return {}
        sampler, study, trial = self._begin(study, trial)
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one field."""
        sampler, study, trial = self._begin(study, trial)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class _Uninterrupted(BasePruner):
    """A pruner that compares a trial with those of the uninterrupted study: no score counts twice.

    Args:
        pruner: The pruner.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self._pruner = pruner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped after its last report."""
        return self._pruner.prune(*as_uninterrupted(study, trial))


def make_pruner(config: PrunerConfig) -> BasePruner:
    """The pruner of a study."""
    return PRUNERS[config.name](config)
