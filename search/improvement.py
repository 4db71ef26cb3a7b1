"""The end of a search of which no better score can be expected."""

import warnings

from optuna.search_space import intersection_search_space
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import TrialState

from search.ledger import Ledger
from search.trial import Bench


def is_exhausted(bench: Bench, ledger: Ledger) -> bool:
    """Whether the best score can hardly be improved by ``budget.min_improvement``, which is said.

    It is the rule of Makarova et al. (Automatic Termination for Hyperparameter Optimization, AutoML 2022): a Gaussian
    process bounds from above what the best trial lacks. Nothing is said before the startup trials are complete, nor
    while trials are queued.
    """
    threshold = bench.config.budget.min_improvement
    if threshold is None or len(ledger.ranked) < max(1, bench.config.sampler.startup_trials):
        return False
    if bench.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return False
    expected = improvement_left(bench, bench.config.seed)
    if expected is None or expected >= threshold:
        return False
    bench.watcher.say(
        f"Search  ends: the best validation {bench.config.metric} lacks at most {expected:.2g}, less than "
        f"budget.min_improvement {threshold:g}"
    )
    return True


def improvement_left(bench: Bench, seed: int) -> float | None:
    """An upper bound of what the best score can be improved by; None where no field was drawn by all trials.

    Args:
        bench: What the study's trials share.
        seed: Of the points at which the bound is looked for.
    """
    trials = bench.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not intersection_search_space(trials):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return float(RegretBoundEvaluator(seed=seed).evaluate(trials, bench.study.direction))
