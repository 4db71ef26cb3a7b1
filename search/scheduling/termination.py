"""End of a search from which no better score can be expected."""

import warnings

from optuna import Study
from optuna.search_space import intersection_search_space
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import TrialState

from search.scheduling.ledger import Ledger
from search.scheduling.original_order import uninterrupted


def no_more_expected(study: Study, ledger: Ledger, threshold: float, startup_trials: int, seed: int) -> float | None:
    """Bound of the improvement that the best score still allows, if it is below a threshold; else None.

    This is the rule of Makarova et al. (Automatic Termination for Hyperparameter Optimization, AutoML 2022): a Gaussian
    process bounds the regret of the best trial from above. The result is None before the startup trials are complete,
    and while trials are queued.

    Args:
        study: The study.
        ledger: The study's trials.
        threshold: Improvement in the metric.
        startup_trials: How many trials have to be complete.
        seed: Seed of the points at which the bound is searched.
    """
    if len(ledger.ranked) < max(1, startup_trials):
        return None
    if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return None
    expected = improvement_left(study, seed)
    return expected if expected is not None and expected < threshold else None


def improvement_left(study: Study, seed: int) -> float | None:
    """Upper bound of the improvement of the best score; None where no field was drawn by all trials.

    Args:
        study: The study.
        seed: Seed of the points at which the bound is searched.
    """
    told = uninterrupted(study.get_trials(deepcopy=False))
    trials = [trial for trial in told if trial.state == TrialState.COMPLETE]
    if not intersection_search_space(trials):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return float(RegretBoundEvaluator(seed=seed).evaluate(trials, study.direction))
