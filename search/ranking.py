"""Which trials are best, asked once; what is asked after each trial is :class:`search.ledger.Ledger`'s."""

from optuna import Study
from optuna.trial import FrozenTrial

from search.ledger import Ledger


def ranked(study: Study) -> list[FrozenTrial]:
    """Completed trials from best to worst by the metric; of equals the earlier first."""
    return list(Ledger(study).ranked)


def pareto_front(study: Study) -> list[FrozenTrial]:
    """Completed trials, best by the metric first, that no other equals or betters in every objective.

    Trials with the very same values are on the front together. A study without costs has no front: the list is empty.
    """
    return list(Ledger(study).front)
