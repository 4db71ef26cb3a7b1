"""The choice of the next step: the largest expected improvement of the best score for its predicted seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.scheduling.learned.curves import Floats
from search.scheduling.learned.features import Candidate, Seen, TaskFeatures
from search.scheduling.learned.prior import Prior, shipped_prior
from search.scheduling.learned.study_model import EarlierStudy, Outlook, StudyModel

# The share of the steps that do not ask the prior which strategy is good.
_EXPLORING = 0.25
# The score that steps aim at: this share of all strategies is predicted to be worse, plus half a standard deviation.
_AIM, _ABOVE = 0.94, 0.5
# A trial is asked about again after half as many epochs as it has had.
_STEP = 0.5
_NORMAL_90 = 1.645
# Scores of less than this share of the way from guessing to a perfect model are taken for guesses.
_GUESS = 0.05
# Of so many trials that have come equally far, one goes on in steps that explore.
_REDUCTION = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """The next step of a study.

    Args:
        new: Index in ``candidates`` of the strategy to begin with; None to resume a trial.
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
        earlier: Finished studies of the user, which count as further data sets of the prior, nearer than its own.
    """

    def __init__(self, prior: Prior | None = None, seed: int = 0, earlier: Sequence[EarlierStudy] = ()) -> None:
        self._seed = seed
        self._model = StudyModel(prior if prior is not None else shipped_prior(), earlier)

    def choose(
        self,
        task: TaskFeatures,
        seen: Sequence[Seen],
        candidates: Sequence[Candidate],
        current: int | None = None,
    ) -> Choice:
        """The next step.

        Args:
            task: The study's data and metric.
            seen: All trials of the study, in the order in which they began.
            candidates: Strategies that could be begun with.
            current: Index in ``seen`` of the trial that has just been trained, which goes on without
                ``task.switch_seconds``. Its state is paused all the same.

        Raises:
            ValueError: There is neither a candidate nor a paused trial.
        """
        epochs_seen = sum(len(one.scores) for one in seen)
        draws = np.random.default_rng([self._seed, len(seen), epochs_seen])
        exploring = epochs_seen > 0 and draws.random() < _EXPLORING
        outlook = self._model.outlook(task, seen, candidates, alone=exploring)
        if not outlook.live.any():
            raise ValueError("there is neither a candidate nor a paused trial to choose from")
        goes_on = outlook.trials == (-2 if current is None else current)
        switch = np.where(goes_on, 0.0, task.switch_seconds)
        cost = outlook.steps * outlook.epoch_seconds[:, None] + switch[:, None]
        gain = _improvement(outlook.mean, outlook.deviation, self._aim(outlook))
        # Local penalization (Gonzalez et al., Batch Bayesian Optimization via Local Penalization, AISTATS 2016): what a
        # running trial is about to tell is not asked again.
        gain = gain * (1 - outlook.crowded[:, None])
        options = _worth_asking(outlook)
        if exploring and (due := _due(outlook, seen)) is not None:
            options = np.arange(len(options)) == due
        worth = np.where(options[:, None], np.log(gain + 1e-12) - np.log(cost + 1e-9), -np.inf)
        place, ahead = divmod(int(worth.argmax()), worth.shape[1])
        return self._choice(outlook, place, ahead, exploring, float(switch[place]), len(candidates))

    @staticmethod
    def _aim(outlook: Outlook) -> float:
        """The score that is to be exceeded: the best so far, or what a good strategy is predicted to reach.

        Early in a search, any cheap and poor strategy improves on the best so far.
        """
        final, deviation = outlook.mean[:, -1], outlook.deviation[:, -1]
        return max(outlook.best, float(np.quantile(final, _AIM) + _ABOVE * np.median(deviation)))

    def _choice(
        self,
        outlook: Outlook,
        place: int,
        ahead: int,
        exploring: bool,
        switch_seconds: float,
        candidates: int,
    ) -> Choice:
        trial, each = int(outlook.trials[place]), float(outlook.epoch_seconds[place])
        left = int(outlook.steps[place, -1])
        wanted = max(int(outlook.done[place] * _STEP + 0.999), math.ceil(switch_seconds / max(each, 1e-6)), 1)
        epochs = max(1, min(int(outlook.steps[place, ahead]), wanted, left))
        mean, deviation = float(outlook.mean[place, -1]), float(outlook.deviation[place, -1])
        low, score, high = (float(outlook.scale.back(mean + _NORMAL_90 * deviation * side)) for side in (-1, 0, 1))
        new = trial == -1
        return Choice(
            new=place if new else None,
            resumed=None if new else trial,
            epochs=epochs,
            score=score,
            low=low,
            high=high,
            seconds=epochs * each + switch_seconds,
            total_seconds=left * each + switch_seconds,
            reason="exploring" if exploring else _reason(outlook, place, candidates),
        )

    def expected_gain(
        self, task: TaskFeatures, seen: Sequence[Seen], candidates: Sequence[Candidate], seconds: float
    ) -> float:
        """By how much the best score is expected to rise within some seconds of search.

        The steps with the most expected improvement a second are counted until the seconds are spent, as if their
        scores were independent.

        Args:
            task: The study's data and metric.
            seen: All trials of the study, in the order in which they began.
            candidates: Strategies that could be begun with.
            seconds: Seconds that the search would go on.

        Returns:
            In units of the score; infinity where nothing has been scored yet.
        """
        if not any(one.scores for one in seen):
            return math.inf
        outlook = self._model.outlook(task, seen, candidates, alone=False)
        if not outlook.live.any():
            return 0.0
        new = outlook.trials == -1
        cost = outlook.steps * outlook.epoch_seconds[:, None] + task.switch_seconds * new[:, None]
        gain = _improvement(outlook.mean, outlook.deviation, outlook.best)
        worth = np.where(outlook.live[:, None] & (cost <= seconds), gain / np.maximum(cost, 1e-9), 0)
        ahead = worth.argmax(1)
        rows = np.arange(len(worth))
        worth, cost = worth[rows, ahead], cost[rows, ahead]
        order = np.argsort(-worth, kind="stable")
        chosen = order[(np.cumsum(cost[order]) <= seconds) & (worth[order] > 0)]
        if not len(chosen):
            return 0.0
        mean, deviation = outlook.mean[chosen, ahead[chosen]], outlook.deviation[chosen, ahead[chosen]]
        best = float(outlook.scale.back(outlook.best))
        scores = np.linspace(best, outlook.scale.highest, 201)
        levels = outlook.scale.of(scores)
        below = _below((levels[:, None] - mean[None]) / deviation[None]).prod(1)
        return float(np.trapezoid(1 - below, scores))


def _below(standard: Floats) -> Floats:
    from scipy.special import ndtr

    return np.asarray(ndtr(standard), np.float64)


def _improvement(mean: Floats, deviation: Floats, level: float) -> Floats:
    """Expected improvement over a level of normally distributed values."""
    standard = (mean - level) / deviation
    density = np.exp(-0.5 * standard**2) / math.sqrt(2 * math.pi)
    return deviation * (standard * _below(standard) + density)


def _worth_asking(outlook: Outlook) -> NDArray[np.bool_]:
    """The options that can be chosen: while no score is better than guessing, the trial that is furthest, if one waits.

    Such scores say nothing of strategies, and trials that pause after them would leave a search without any answer.
    """
    furthest = np.where(outlook.live & (outlook.trials >= 0), outlook.done, 0)
    guess = outlook.scale.of([outlook.scale.lowest + _GUESS * (outlook.scale.highest - outlook.scale.lowest)])[0]
    if outlook.best > guess or not furthest.any():
        return outlook.live
    return np.asarray(furthest == furthest.max(), np.bool_)


def _due(outlook: Outlook, seen: Sequence[Seen]) -> int | None:
    """The option of a paused trial that goes on by its score alone; None if there is none.

    By asynchronous successive halving (Li et al., MLSys 2020): the best of those that wait after as many epochs, most
    epochs first, unless a third of all that came so far have gone on already.
    """
    waiting = np.flatnonzero(outlook.live & (outlook.trials >= 0))
    for epochs in sorted(set(outlook.done[waiting].tolist()), reverse=True):
        reached, further = (outlook.done >= epochs).sum(), (outlook.done > epochs).sum()
        if further < reached // _REDUCTION:
            rows = [int(row) for row in waiting if outlook.done[row] == epochs]
            return max(rows, key=lambda row: (max(seen[int(outlook.trials[row])].scores), -row))
    return None


def _reason(outlook: Outlook, place: int, candidates: int) -> str:
    if outlook.trials[place] != -1:
        return "rising curve" if outlook.rising[place] else "may rise"
    final = outlook.mean[:candidates, -1]
    total = outlook.epoch_seconds[:candidates] * outlook.steps[:candidates, -1]
    cheap = total[place] < 0.5 * np.median(total)
    return "cheap probe" if cheap and final[place] < np.quantile(final, 0.9) else "best prior"
