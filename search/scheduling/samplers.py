"""Optuna's samplers and pruners by name."""

from collections.abc import Callable

import numpy as np
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
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
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from search.config import PrunerConfig, SamplerConfig
from search.scheduling.rungs import RungPruner, Rungs

SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: TPESampler(
        n_startup_trials=startup, multivariate=True, group=True, constant_liar=True, seed=seed
    ),
    "gp": lambda seed, startup: GPSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False),
    "cmaes": lambda seed, startup: CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False),
    "random": lambda seed, startup: RandomSampler(seed=seed),
    "nsga2": lambda seed, startup: NSGAIISampler(seed=seed),
}

# Optuna's pruners count reports, our keys count epochs.
PRUNERS: dict[str, Callable[[PrunerConfig], BasePruner]] = {
    "median": lambda config: MedianPruner(
        n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs * config.reports_per_epoch
    ),
    "halving": lambda config: SuccessiveHalvingPruner(
        min_resource=max(1, config.warmup_epochs) * config.reports_per_epoch
    ),
    "hyperband": lambda config: HyperbandPruner(min_resource=max(1, config.warmup_epochs) * config.reports_per_epoch),
    "patient": lambda config: PatientPruner(None, patience=config.patience * config.reports_per_epoch),
    "rungs": lambda config: RungPruner(Rungs.of(config)),
    "none": lambda config: NopPruner(),
}


def make_sampler(config: SamplerConfig, seed: int, trial_number: int) -> BaseSampler:
    """The sampler for one trial.

    Its random state follows from the seed and the trial's number. So a resumed study draws the same as without the
    break, and does not repeat its first draws. QMC is the exception: all trials share one sequence, and the study keeps
    the position in it.
    """
    if config.name == "qmc":
        return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False)
    state = int(np.random.SeedSequence([seed, trial_number]).generate_state(1)[0])
    return SAMPLERS[config.name](state, config.startup_trials)


def make_pruner(config: PrunerConfig) -> BasePruner:
    """The pruner of a study."""
    return PRUNERS[config.name](config)
