"""How much of the score's variation each field of a strategy explains."""

import logging
import warnings
from collections import Counter

import optuna
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.storage import score_of

logger = logging.getLogger(__name__)


def importances(study: Study) -> dict[str, float]:
    """Share of each field by Optuna's default evaluator; empty when trials are too few or all have the same score.

    In a space with conditions a field may have been drawn by two trials only, too few to judge by. Only fields that at
    least half of the completed trials drew take part.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 4 or len({score_of(t) for t in complete}) == 1:
        return {}
    # With a target, Optuna 5.0 takes low values for good, and warns of it; without one it takes the study's direction.
    sign = 1 if study.directions[0] == StudyDirection.MINIMIZE else -1
    target = (lambda trial: sign * trial.values[0]) if len(study.directions) > 1 else None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")
            found = optuna.importance.get_param_importances(study, target=target)
    except (RuntimeError, ValueError) as error:
        logger.info("importances cannot be estimated: %s", error)
        return {}
    drawn = Counter(name for trial in complete for name in trial.params)
    shares = {name: share for name, share in found.items() if 2 * drawn[name] >= len(complete)}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()} if total > 0 else {}
