"""Predictions of a study's paused trials and candidates: the prior, corrected by what the study itself has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.scheduling.learned.belief import (
    Posterior,
    Strategies,
    scores_given,
    scores_of_other_studies,
    seconds_given,
    weights_of_other_studies,
)
from search.scheduling.learned.curves import Floats, Scale, ahead
from search.scheduling.learned.encoding import NAMES, encode
from search.scheduling.learned.features import Candidate, Seen, State, TaskFeatures
from search.scheduling.learned.prior import Prior

# Trials of a study that are looked at: the best, and the latest. More would say little more, and take longer.
_BEST, _LATEST = 120, 60
_OF_EARLIER = 60
# What a final score deviates from any prediction, in spreads, for the order of strategies, and for one of them.
_NOISE, _OF_ONE = 0.25, 0.7
# Deviation of a score that is known.
_KNOWN = 0.02
# How much a study has to see of its curves before they count as much as the prior's.
_CURVES_OF_PRIOR = 1.0
_MOST_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class EarlierStudy:
    """A finished study of the user.

    Args:
        task: Its data and metric.
        seen: Its trials.
    """

    task: TaskFeatures
    seen: Sequence[Seen]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is predicted of each step that could be taken: first of all candidates, then of trials.

    Args:
        trials: (options,) int, index of the trial; -1 for a candidate.
        live: (options,) bool, whether the option can be chosen.
        done: (options,) int, epochs that it has had.
        steps: (options, horizons) int, epochs ahead; the last is its end.
        mean: (options, horizons) float, best score after these epochs, on the study's scale.
        deviation: (options, horizons) float, its standard deviation.
        epoch_seconds: (options,) float, seconds of an epoch.
        rising: (options,) bool, whether a trial's last epoch was its best.
        crowded: (options,) float, how alike a candidate and a running trial are, 0 to 1; 0 for trials.
        best: The best score so far, on the study's scale.
        scale: The study's scale.
    """

    trials: NDArray[np.int64]
    live: NDArray[np.bool_]
    done: NDArray[np.int64]
    steps: NDArray[np.int64]
    mean: Floats
    deviation: Floats
    epoch_seconds: Floats
    rising: NDArray[np.bool_]
    crowded: Floats
    best: float
    scale: Scale


@dataclass(frozen=True, slots=True)
class _Of:
    """What the prior says of one candidate."""

    vector: Floats
    scores: Floats
    deviations: Floats
    epoch: float


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What earlier studies say: their strategies, each model's number, and the weight of each strategy."""

    strategies: Strategies
    models: Mapping[str, float]
    weights: Floats


@dataclass(frozen=True, slots=True)
class _Trials:
    """What is predicted of the trials that are looked at; each (trials, ...)."""

    places: list[int]
    best: Floats
    gains: Floats
    deviations: Floats
    over: NDArray[np.bool_]


class StudyModel:
    """Predicts what each step of a study would bring.

    Args:
        prior: What fine-tunings elsewhere have taught.
        earlier: Finished studies of the user.
    """

    def __init__(self, prior: Prior, earlier: Sequence[EarlierStudy] = ()) -> None:
        self._prior, self._earlier = prior, list(earlier)
        self._task: TaskFeatures | None = None
        self._told: _Earlier | None = None
        self._candidates: dict[Candidate, _Of] = {}
        self._gains: dict[tuple[Candidate, tuple[float, ...]], tuple[Floats, Floats]] = {}
        self._rises: dict[tuple[Candidate, tuple[float, ...]], tuple[float, float]] = {}

    def outlook(
        self, task: TaskFeatures, seen: Sequence[Seen], candidates: Sequence[Candidate], *, alone: bool
    ) -> Outlook:
        """Predictions of all steps that could be taken.

        Args:
            task: The study's data and metric.
            seen: All trials of the study.
            candidates: Strategies that could be begun with.
            alone: Whether the prior's order of strategies is left out.
        """
        self._begin(task)
        scale = _scale_of(task, seen)
        places = _looked_at(seen)
        running = [one.candidate for one in seen if one.state == State.RUNNING]
        everyone = [*candidates, *(seen[place].candidate for place in places), *running]
        new, old = len(candidates), len(candidates) + len(places)
        of = self._look_up(task, everyone)
        trials = self._trials(seen, places, of[new:old], scale)
        everything = self._strategies(everyone, of)
        asked, known, beside = (_part(everything, slice(*ends)) for ends in ((0, new), (new, old), (old, None)))
        begun = self._of_candidates(of[:new], asked, known, trials, alone)
        each = self._epoch_seconds(candidates, seen, places, of, asked, known)
        chosen = [seen[place] for place in places]
        tops = [max(one.scores) for one in seen if one.scores]
        best = float(scale.of([max(tops)])[0]) if tops else -np.inf
        crowded = asked.alike(beside).max(1, initial=0.0)
        return Outlook(
            trials=np.array([*[-1] * len(candidates), *places], np.int64),
            live=np.array([*[True] * len(candidates), *(one.state == State.PAUSED for one in chosen)], np.bool_),
            done=np.array([*[0] * len(candidates), *(len(one.scores) for one in chosen)], np.int64),
            steps=np.array(
                [
                    *(ahead(0, one.epochs) for one in candidates),
                    *(ahead(len(one.scores), one.candidate.epochs) for one in chosen),
                ],
                np.int64,
            ),
            mean=np.concatenate([begun[0], trials.best[:, None] + trials.gains]),
            deviation=np.concatenate([begun[1], trials.deviations]),
            epoch_seconds=each,
            rising=np.array(
                [*[False] * len(candidates), *(one.scores[-1:] == (max(one.scores, default=0),) for one in chosen)],
                np.bool_,
            ),
            crowded=np.concatenate([crowded, np.zeros(len(places))]),
            best=best,
            scale=scale,
        )

    def _begin(self, task: TaskFeatures) -> None:
        """Forget what was computed for another task, or for too many strategies."""
        if task != self._task:
            self._told = self._of_earlier(task)
        if task != self._task or len(self._candidates) > _MOST_KEPT or len(self._gains) > _MOST_KEPT:
            self._task = task
            self._candidates.clear()
            self._gains.clear()
            self._rises.clear()

    def _look_up(self, task: TaskFeatures, candidates: Sequence[Candidate]) -> list[_Of]:
        """What the prior says of candidates; it is asked about those that it has not been asked about."""
        missing = [one for one in dict.fromkeys(candidates) if one not in self._candidates]
        if missing:
            self._ask(task, missing)
        return [self._candidates[one] for one in candidates]

    def _ask(self, task: TaskFeatures, missing: Sequence[Candidate]) -> None:
        vectors = np.array([encode(one, task) for one in missing], np.float64).reshape(-1, len(NAMES))
        scores, deviations = self._prior.new_scores(vectors, [one.epochs for one in missing])
        scores = scores + self._corrections(missing, vectors, scores[:, -1])[:, None]
        epochs = self._prior.epoch_seconds(vectors, task.images)
        for place, one in enumerate(missing):
            self._candidates[one] = _Of(vectors[place], scores[place], deviations[place], float(epochs[place]))

    def _corrections(self, candidates: Sequence[Candidate], vectors: Floats, scores: Floats) -> Floats:
        """By how much earlier studies say that the prior is wrong of candidates, in spreads."""
        told = self._told
        if told is None:
            return np.zeros(len(candidates))
        points, own = self._prior.alike(vectors, np.zeros((len(candidates), 0)))
        numbers = [told.models.get(one.model.name, -1.0) for one in candidates]
        asked = Strategies(points, own, np.array(numbers, np.float64), scores)
        return scores_of_other_studies(told.strategies, told.weights, asked)

    def _of_earlier(self, task: TaskFeatures) -> _Earlier | None:
        """What the earlier studies say, computed once for each task; None where they say nothing."""
        parts = []
        for study in self._earlier:
            scale = _scale_of(study.task, study.seen)
            ended = [one for one in study.seen if one.scores and one.state == State.FINISHED]
            ended = sorted(ended, key=lambda one: -max(one.scores))[:_OF_EARLIER]
            if len(ended) > 1:
                vectors = np.array([encode(one.candidate, study.task) for one in ended], np.float64)
                said = self._prior.new_scores(vectors, [one.candidate.epochs for one in ended])[0][:, -1]
                got = self._finals(vectors, ended, scale) / self._prior.spread
                names = [one.candidate.model.name for one in ended]
                nearness = np.full(len(ended), _nearness(task, study.task))
                parts.append((vectors, said, (got - got.mean()) - (said - said.mean()), nearness, names))
        if not parts:
            return None
        vectors, said, residuals, nearness = (np.concatenate([part[of] for part in parts]) for of in range(4))
        names = [name for part in parts for name in part[4]]
        points, own = self._prior.alike(vectors, np.zeros((len(names), 0)))
        strategies = Strategies(points, own, _numbered(names), said)
        weights = weights_of_other_studies(strategies, nearness, residuals, _OF_ONE**2)
        return _Earlier(strategies, dict(zip(names, strategies.models.tolist(), strict=True)), weights)

    def _finals(self, vectors: Floats, ended: Sequence[Seen], scale: Scale) -> Floats:
        """Final scores of trials; of those that were stopped before their end, as predicted."""
        curves = [scale.of(one.scores) for one in ended]
        left = np.array([one.candidate.epochs - len(one.scores) for one in ended])
        epochs = [max(one.candidate.epochs, len(one.scores) + 1) for one in ended]
        rises = self._prior.rises(vectors, curves, epochs, np.maximum(left, 1).tolist())
        return np.array([curve.max() for curve in curves]) + np.where(left > 0, rises, 0.0)

    def _trials(self, seen: Sequence[Seen], places: list[int], of: Sequence[_Of], scale: Scale) -> _Trials:
        """Predictions of the trials that are looked at. Gains are scaled to how curves of this study have risen."""
        values = [scale.of(seen[place].scores or (scale.lowest,)) for place in places]
        over = np.array([seen[place].state in (State.FINISHED, State.FAILED) for place in places], np.bool_)
        keys = [(seen[place].candidate, seen[place].scores or (scale.lowest,)) for place in places]
        missing = [place for place, key in enumerate(keys) if not over[place] and key not in self._gains]
        if missing:
            vectors = np.array([of[place].vector for place in missing])
            epochs = [max(keys[place][0].epochs, len(values[place]) + 1) for place in missing]
            found = self._prior.gains(vectors, [values[place] for place in missing], epochs)
            for row, place in enumerate(missing):
                self._gains[keys[place]] = found[0][row], found[1][row]
        width = len(ahead(0, 1))
        known = np.zeros(width), np.full(width, _KNOWN)
        pairs = [known if ended else self._gains[key] for key, ended in zip(keys, over, strict=True)]
        gains = np.array([one[0] for one in pairs], np.float64).reshape(-1, width)
        deviations = np.array([one[1] for one in pairs], np.float64).reshape(-1, width)
        best = np.array([float(one.max()) for one in values], np.float64)
        return _Trials(places, best, gains * self._pace([one for one, _ in keys], values), deviations, over)

    def _pace(self, candidates: Sequence[Candidate], values: Sequence[Floats]) -> float:
        """By how much curves of this study rise more (above 1) or less than the prior predicts.

        Each curve is predicted from its first half.
        """
        keys = [(one, tuple(curve.tolist())) for one, curve in zip(candidates, values, strict=True) if len(curve) > 1]
        missing = [key for key in dict.fromkeys(keys) if key not in self._rises]
        if missing:
            halves = [np.array(curve[: len(curve) // 2]) for _, curve in missing]
            steps = [len(curve) - len(half) for (_, curve), half in zip(missing, halves, strict=True)]
            vectors = np.array([self._candidates[one].vector for one, _ in missing])
            epochs = [max(one.epochs, len(curve)) for one, curve in missing]
            said = self._prior.rises(vectors, halves, epochs, steps)
            for key, half, rise in zip(missing, halves, said, strict=True):
                self._rises[key] = float(rise), max(key[1]) - float(half.max())
        predicted, got = (sum(self._rises[key][of] for key in keys) for of in (0, 1))
        return (got + _CURVES_OF_PRIOR) / (predicted + _CURVES_OF_PRIOR)

    def _strategies(self, everything: Sequence[Candidate], of: Sequence[_Of]) -> Strategies:
        further = max((len(one.own) for one in everything), default=0)
        own = np.array([[*one.own, *[0.5] * (further - len(one.own))] for one in everything], np.float64)
        vectors = np.array([one.vector for one in of], np.float64).reshape(-1, len(NAMES))
        points, own = self._prior.alike(vectors, own.reshape(len(everything), further))
        scores = np.array([one.scores[-1] for one in of], np.float64)
        return Strategies(points, own, _numbered([one.model.name for one in everything]), scores)

    def _of_candidates(
        self, of: Sequence[_Of], asked: Strategies, known: Strategies, trials: _Trials, alone: bool
    ) -> tuple[Floats, Floats]:
        """Best scores of candidates after each number of epochs, with deviations, each (candidates, horizons)."""
        prior = self._prior
        width = len(ahead(0, 1))
        if not of:
            return np.zeros((0, width)), np.zeros((0, width))
        scores = np.array([one.scores for one in of])
        own = np.array([one.deviations for one in of])
        finals = trials.best + trials.gains[:, -1]
        flat = float(np.concatenate([asked.scores, known.scores]).mean())
        of_asked = np.full(len(asked.scores), flat) if alone else asked.scores
        of_known = np.full(len(known.scores), flat) if alone else known.scores
        found: Posterior = scores_given(
            known,
            asked,
            finals - prior.level - prior.spread * of_known,
            trials.deviations[:, -1] ** 2 + (_NOISE * prior.spread) ** 2,
            level=prior.level_variance,
            spread=prior.spread,
            alone=alone,
        )
        final = prior.level + prior.spread * of_asked + found.mean
        mean = final[:, None] - prior.spread * (scores[:, -1:] - scores)
        deviation = np.sqrt(found.variance[:, None] + (own * prior.spread * _OF_ONE) ** 2)
        return mean, deviation

    def _epoch_seconds(
        self,
        candidates: Sequence[Candidate],
        seen: Sequence[Seen],
        places: Sequence[int],
        of: Sequence[_Of],
        asked: Strategies,
        known: Strategies,
    ) -> Floats:
        """Seconds of an epoch of each candidate and of each trial that is looked at."""
        predicted = np.array([one.epoch for one in of[: len(candidates)]], np.float64)
        trained = [place for place, index in enumerate(places) if seen[index].seconds]
        seconds = [seen[places[place]].seconds for place in trained]
        got = np.array([np.log(max(1e-6, float(np.median(one)))) for one in seconds], np.float64)
        said = np.array([of[len(candidates) + place].epoch for place in trained], np.float64)
        rows = np.array(trained, np.int64)
        new = np.exp(predicted + seconds_given(_part(known, rows), asked, got - said)) if len(candidates) else predicted
        told = [one.epoch_seconds for one in candidates]
        new = np.array([each if own is None else own for each, own in zip(new, told, strict=True)], np.float64)
        mean = [float(np.mean(seen[index].seconds)) if seen[index].seconds else 1.0 for index in places]
        return np.concatenate([new, np.array(mean, np.float64)])


def _part(strategies: Strategies, rows: slice | NDArray[np.int64]) -> Strategies:
    return Strategies(strategies.points[rows], strategies.own[rows], strategies.models[rows], strategies.scores[rows])


def _numbered(names: Sequence[str]) -> Floats:
    numbers = {name: float(place) for place, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.float64)


def _nearness(one: TaskFeatures, other: TaskFeatures) -> float:
    """How alike two data sets are, 0 to 1, by their numbers of images and classes."""
    gap = abs(np.log(max(1, one.images) / max(1, other.images))) / 2
    gap += abs(np.log((one.classes or 1) / (other.classes or 1))) / 2
    return float(np.exp(-gap))


def _scale_of(task: TaskFeatures, seen: Sequence[Seen]) -> Scale:
    """The scale of a study's scores. Where the metric has no bounds, what the study has seen bounds it."""
    scores = [score for one in seen for score in one.scores]
    lowest = task.lowest
    if lowest is None:
        lowest = 1 / task.classes if task.classes and task.highest == 1 else min(scores, default=0.0)
    highest = task.highest
    if highest is None:
        highest = max(scores, default=lowest) + 0.25 * max(max(scores, default=lowest) - lowest, 1e-6)
    return Scale(lowest, max(highest, lowest + 1e-6))


def _looked_at(seen: Sequence[Seen]) -> list[int]:
    """Indices of the trials that are looked at, in order: those with a score or a failure, the best and the latest."""
    told = [place for place, one in enumerate(seen) if one.scores or one.state == State.FAILED]
    if len(told) <= _BEST + _LATEST:
        return told
    best = sorted(told, key=lambda place: (-max(seen[place].scores, default=-np.inf), place))[:_BEST]
    return sorted({*best, *told[-_LATEST:]})
