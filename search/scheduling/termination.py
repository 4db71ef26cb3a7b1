"""The end of a search of which no better score can be expected."""

import warnings

from optuna import Study
from optuna.search_space import intersection_search_space
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import TrialState

from search.scheduling.ledger import Ledger


def no_more_expected(study: Study, ledger: Ledger, threshold: float, startup_trials: int, seed: int) -> float | None:
    """What the best score can still be improved by, if that is less than a threshold; else None.

    It is the rule of Makarova et al. (Automatic Termination for Hyperparameter Optimization, AutoML 2022): a Gaussian
    process bounds from above what the best trial lacks. Nothing is said before the startup trials are complete, nor
    while trials are queued.

    Args:
        study: The study.
        ledger: Its trials.
        threshold: In the metric.
        startup_trials: How many have to be complete.
        seed: Of the points at which the bound is looked for.
    """
    if len(ledger.ranked) < max(1, startup_trials):
        return None
    if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return None
    expected = improvement_left(study, seed)
    return expected if expected is not None and expected < threshold else None


def improvement_left(study: Study, seed: int) -> float | None:
    """An upper bound of what the best score can be improved by; None where no field was drawn by all trials.

    Args:
        study: The study.
        seed: Of the points at which the bound is looked for.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not intersection_search_space(trials):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return float(RegretBoundEvaluator(seed=seed).evaluate(trials, study.direction))
