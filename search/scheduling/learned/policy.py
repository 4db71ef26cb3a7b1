"""The choice of the next step: the largest expected improvement of the best score for its predicted seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.scheduling.learned.features import Candidate, Seen, TaskFeatures
from search.scheduling.learned.prior import Prior, shipped_prior


@dataclass(frozen=True, slots=True)
class Choice:
    """The next step of a study.

    Args:
        new: Index in ``candidates`` of the strategy to begin with; None to resume a paused trial.
        resumed: Index in ``seen`` of the trial to resume; None to begin with a new one.
        epochs: Epochs to train before the policy is asked again.
        score: Predicted best score of the whole trial.
        low: Lower end of its 90% interval.
        high: Upper end.
        seconds: Predicted seconds of this step.
        total_seconds: Predicted seconds to the trial's end, this step included.
        reason: Why it was chosen, in at most three words.
    """

    new: int | None
    resumed: int | None
    epochs: int
    score: float
    low: float
    high: float
    seconds: float
    total_seconds: float
    reason: str


class LearnedPolicy:
    """Chooses what a study trains next. The same seed and the same trials give the same choices.

    Args:
        prior: What fine-tunings elsewhere have taught; None for the numbers that are shipped.
        seed: Seed of the steps that explore.
    """

    def __init__(self, prior: Prior | None = None, seed: int = 0) -> None:
        self._prior = prior if prior is not None else shipped_prior()
        self._seed = seed

    def choose(self, task: TaskFeatures, seen: Sequence[Seen], candidates: Sequence[Candidate]) -> Choice:
        """The next step.

        Args:
            task: The study's data and metric.
            seen: All trials of the study, in the order in which they began.
            candidates: Strategies that could be begun with.

        Raises:
            ValueError: There is neither a candidate nor a paused trial.
        """
        raise NotImplementedError

    def expected_gain(
        self, task: TaskFeatures, seen: Sequence[Seen], candidates: Sequence[Candidate], seconds: float
    ) -> float:
        """By how much the best score is expected to rise within some seconds of search.

        Args:
            task: The study's data and metric.
            seen: All trials of the study, in the order in which they began.
            candidates: Strategies that could be begun with.
            seconds: Seconds that the search would go on.
        """
        raise NotImplementedError
