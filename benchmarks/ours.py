"""The learnt policy in the replay: fitted on the other data sets, and with parts of it left out or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.replay import Curves, Fit, Start, Step, Task
from search.scheduling import learned
from search.scheduling.learned import Candidate, LearnedPolicy, Prior, Seen, State, TaskFeatures


@dataclass(frozen=True, slots=True)
class Variant:
    """What is changed of the policy.

    Args:
        prior: ``fitted``; ``none`` for no order of strategies, ``negated`` for the opposite order.
        permuted: Whether the strategies' fields are permuted, so that the policy is shown those of another.
        blind: Whether curves are hidden: a trial that has begun is trained to its end.
        free: Whether all epochs are taken to cost the same.
    """

    prior: str = "fitted"
    permuted: bool = False
    blind: bool = False
    free: bool = False


class Ours:
    """One search by the learnt policy.

    Args:
        prior: The fitted prior.
        task: The data set.
        seed: Of the policy.
        variant: What is changed.
    """

    def __init__(self, prior: Prior, task: Task, seed: int, variant: Variant) -> None:
        rows = task.fields.to_dict("records")
        candidates = [learned.candidate_of({"epochs": task.epochs, **row}) for row in rows]
        if variant.permuted:
            candidates = [candidates[place] for place in np.random.default_rng(seed).permutation(len(candidates))]
        if variant.free:
            candidates = [replace(one, epoch_seconds=1.0) for one in candidates]
        self._candidates: list[Candidate] = candidates
        self._task = TaskFeatures(task.images, task.classes)
        self._policy = LearnedPolicy(_changed(prior, variant.prior), seed)
        self._variant = variant
        self._seen: dict[int, Seen] = {}
        self._left, self._current = 0, -1

    def choose(self) -> int:
        """The row of the strategy that trains its next epoch."""
        if self._left and self._current >= 0:
            return self._current
        seen = list(self._seen)
        new = [place for place in range(len(self._candidates)) if place not in self._seen]
        told = self._policy.choose(self._task, list(self._seen.values()), [self._candidates[place] for place in new])
        self._current = new[told.new] if told.new is not None else seen[told.resumed or 0]
        self._left = self._candidates[self._current].epochs if self._variant.blind else told.epochs
        return self._current

    def tell(self, step: Step) -> None:
        """What the epoch came to."""
        before = self._seen.get(step.strategy)
        scores = (*(before.scores if before else ()), step.score)
        seconds = (*(before.seconds if before else ()), 1.0 if self._variant.free else step.seconds)
        state = State.FINISHED if step.ended else State.PAUSED
        self._seen[step.strategy] = Seen(self._candidates[step.strategy], scores, seconds, state)
        self._left = 0 if step.ended else self._left - 1


def _changed(prior: Prior, change: str) -> Prior:
    """The prior, changed as :class:`Variant` says."""
    if change == "fitted":
        return prior
    sign = 0.0 if change == "none" else -1.0
    return replace(prior, new=replace(prior.new, base=sign * prior.new.base, value=np.float32(sign) * prior.new.value))


def ours(variant: Variant = Variant()) -> Fit:
    """The policy, which is fitted on the other data sets."""

    def fit(others: Sequence[Curves]) -> Start:
        prior = _fitted(others)
        return lambda task, seed: Ours(prior, task, seed, variant)

    return fit


_PRIORS: dict[tuple[str, ...], Prior] = {}


def _fitted(others: Sequence[Curves]) -> Prior:
    """The prior of these data sets, which all variants share."""
    key = tuple(curves.data_set for curves in others)
    if key not in _PRIORS:
        _PRIORS[key] = learned.fit_prior([_as_learned(curves) for curves in others], ", ".join(key))
    return _PRIORS[key]


def _as_learned(curves: Curves) -> learned.Curves:
    rows = curves.fields.to_dict("records")
    return learned.Curves(
        curves.data_set,
        tuple(TaskFeatures(curves.images, curves.classes) for _ in rows),
        tuple(learned.candidate_of(row) for row in rows),
        tuple(tuple(one.tolist()) for one in curves.scores),
        tuple(tuple(one.tolist()) for one in curves.seconds),
    )
