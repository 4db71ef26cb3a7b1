"""Which layers to train, answered in words, as far as a study's trials can tell."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.reporting.depth_effects import Comparison, DepthEffects
from search.reporting.importance import LEAST_TRIALS, Absent, cuts_of, importances
from search.storage import BLOCKS, CONFIRMATIONS, CONTINUES, DEPTH, IDENTITY, MODEL, outcome_of, score_of
from search.winner import bounds_of
from strategies import counted

_TITLE = "Which layers?"
# Fields and trials that a sentence names at most.
_MOST_FIELDS, _MOST_TRIALS = 3, 5
# Fewer repeated trainings say less of the noise than the forest does.
_LEAST_REPEATS = 4
_WORDS = {"lr": "the learning rate"}


@dataclass(frozen=True, slots=True)
class Told:
    """A comparison of depths that the paragraph tells.

    Args:
        these: The lowest and the highest of the depths whose mean score is compared.
        others: Those with whose mean it is compared.
        found: The difference.
    """

    these: tuple[int, int]
    others: tuple[int, int]
    found: Comparison


@dataclass(frozen=True, slots=True)
class Layers:
    """The answer.

    Args:
        sentences: What can be told, and what cannot; in one paragraph.
        told: The comparisons of depths in it.
        tied: Numbers of the trials that do not differ from the best beyond noise, the best first; empty where that
            cannot be told.
    """

    sentences: tuple[str, ...]
    told: tuple[Told, ...] = ()
    tied: tuple[int, ...] = ()

    @property
    def paragraph(self) -> str:
        """All sentences."""
        return f"{_TITLE} {' '.join(self.sentences)}"


@dataclass(frozen=True, slots=True)
class _Trial:
    """What is read of a completed trial."""

    number: int
    score: float
    depth: int
    seconds: float
    fields: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Study:
    """What is read of a study.

    Args:
        metric: Name of the score.
        is_lower_better: Whether lower scores are better.
        model: The best trial's model where several are searched, else empty.
        blocks: How many blocks it has; None in studies of earlier versions.
        stopped: How many of its trials were stopped early.
        repeats: The scores of each strategy that was trained again with new seeds.
    """

    metric: str
    is_lower_better: bool
    model: str
    blocks: int | None
    stopped: int
    repeats: tuple[tuple[float, ...], ...]

    def last(self, count: int) -> str:
        """``the last 7 of 9 blocks``."""
        return f"the last {count}{f' of {self.blocks}' if self.blocks is not None else ''} blocks"


def which_layers(study: Study) -> Layers:
    """How many blocks to train, what that brings, which field matters next, and which trials are as good as the best.

    Where several models are searched, the trials of the best trial's model are compared.

    Args:
        study: A study whose trials may go on.
    """
    lower = study.directions[0] == StudyDirection.MINIMIZE
    ended = [trial for trial in study.get_trials(deepcopy=False) if DEPTH in trial.user_attrs]
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE and _is_finite(score_of(trial))]
    if not complete:
        return _of_too_few(0)
    # The attributes are read once, since each access reads the store.
    attrs = study.user_attrs
    best = (min if lower else max)(complete, key=lambda trial: score_of(trial) or 0.0)
    model = best.params.get(MODEL, "")
    ours = [trial for trial in complete if trial.params.get(MODEL, "") == model]
    blocks: Mapping[str, int] = attrs.get(BLOCKS, {})
    # Of a trial that was paused and resumed, the last part has the score.
    resumed = {trial.user_attrs.get(CONTINUES) for trial in ended}
    stopped = [trial for trial in ended if outcome_of(trial) == "pruned" and trial.number not in resumed]
    about = _Study(
        metric=attrs[IDENTITY]["metric"],
        is_lower_better=lower,
        model=model,
        blocks=blocks.get(model) if model else next(iter(blocks.values()), None),
        stopped=sum(trial.params.get(MODEL, "") == model for trial in stopped),
        repeats=tuple(_repeats(attrs.get(CONFIRMATIONS, {}))),
    )
    found = _answer(about, tuple(map(_read, ours)))
    if not found.tied:
        return found
    next_fields = _on_fields(importances(study).shares, _searched(complete), len(complete))
    return Layers((*found.sentences[:-1], *next_fields, *found.sentences[-1:]), found.told, found.tied)


def _of_too_few(count: int, model: str = "") -> Layers:
    of = f" of {model}" if model else ""
    return Layers((f"That cannot be told from {count} trials{of} ({LEAST_TRIALS} complete ones are needed).",))


def _is_finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def _read(trial: FrozenTrial) -> _Trial:
    score, seconds = score_of(trial), trial.duration.total_seconds() if trial.duration else math.inf
    assert score is not None, "only completed trials are read"
    fields = tuple((name, value) for name, value in trial.params.items() if name not in ("depth", MODEL))
    return _Trial(trial.number, score, trial.user_attrs[DEPTH], seconds, fields)


def _repeats(stored: Mapping[str, Mapping[str, float | None]]) -> Iterator[tuple[float, ...]]:
    for scores in stored.values():
        found = tuple(score for score in scores.values() if score is not None and _is_finite(score))
        if len(found) > 1:
            yield found


def _searched(trials: Sequence[FrozenTrial]) -> list[str]:
    """Fields other than the depth in which trials differ."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1 and name != "depth"]


# The end of a study asks for it in several places.
@lru_cache(maxsize=8)
def _answer(about: _Study, trials: Sequence[_Trial]) -> Layers:
    if len(trials) < LEAST_TRIALS:
        return _of_too_few(len(trials), about.model)
    if len({trial.score for trial in trials}) == 1:
        return Layers((f"That cannot be told: all {len(trials)} trials have the same score.",))
    drawn = [dict(trial.fields) for trial in trials]
    names = dict.fromkeys(name for fields in drawn for name in fields)
    columns = [cuts_of([fields.get(name, Absent) for fields in drawn]) for name in names]
    scores, depths = np.array([trial.score for trial in trials]), np.array([trial.depth for trial in trials])
    effects = DepthEffects(scores, depths, np.concatenate([np.zeros((len(trials), 0), bool), *columns], axis=1))
    told: list[Told] = []
    if len(effects.groups) < 2:
        low, high = effects.groups[0]
        what = f"{low}" if low == high else f"{low} to {high}"
        sentences = [f"That cannot be told: nearly all of {len(trials)} trials train {what} blocks."]
    else:
        sentences, told = _on_depth(about, effects, len(trials))
    if about.model:
        sentences[0] = f"{sentences[0][:-1]} ({about.model})."
    if about.stopped and told:
        sentences.append(f"{counted(about.stopped, 'trial')} that were stopped early do not count.")
    tied, on_tie = _on_tie(about, trials, effects)
    return Layers((*sentences, on_tie), tuple(told), tied)


def _on_depth(about: _Study, effects: DepthEffects, count: int) -> tuple[list[str], list[Told]]:
    """What can be said of depths, and the comparisons in it."""
    first, last = _plateau(effects, -1.0 if about.is_lower_better else 1.0)
    said = [*_on_fewer(about, effects, first, last, count), *_on_more(about, effects, first, last, count)]
    return [sentence for sentence, _ in said], [told for _, told in said]


def _on_fewer(about: _Study, effects: DepthEffects, first: int, last: int, count: int) -> Iterator[tuple[str, Told]]:
    """What it costs to train fewer blocks than the recommended groups, from ``first`` to ``last``, do."""
    if first == 0:
        return
    least = effects.groups[first][0]
    told = _compared(about, effects, range(first, last + 1), range(first))
    begin = f"Train at least {about.last(least)}: with fewer than {least}, "
    if not told.found.is_clear:
        # One group is clearly worse than the best one; the mean of all need not be.
        begin = f"{least} or more blocks look best, but {count} trials cannot tell: with fewer, "
    yield f"{begin}{_consequence(about, told)} ({_interval(told)}).", told


def _on_more(about: _Study, effects: DepthEffects, first: int, last: int, count: int) -> Iterator[tuple[str, Told]]:
    """What it brings or costs to train more blocks."""
    groups = effects.groups
    if last + 1 < len(groups):
        told = _compared(about, effects, range(first, last + 1), range(last + 1, len(groups)))
        most = groups[last][1]
        begin = f"Train at most {about.last(most)}" if first == 0 and told.found.is_clear else f"Beyond {most} blocks"
        chance = "" if told.found.is_clear else ", which may be chance"
        yield f"{begin}: with more, {_consequence(about, told)}{chance} ({_interval(told)}).", told
    elif first == 0:
        half = len(groups) // 2
        told = _compared(about, effects, range(half, len(groups)), range(half))
        begin = f"How many blocks are trained makes no difference that {count} trials can show: with fewer than "
        yield f"{begin}{groups[half][0]}, {_consequence(about, told)} ({_interval(told)}).", told
    elif first < last:
        told = _compared(about, effects, range(first + 1, last + 1), [first])
        gain = f"{told.found.difference:+.3f}, 95% interval {told.found.low:+.3f} to {told.found.high:+.3f}"
        yield f"Beyond {groups[first][1]}, nothing is gained that {count} trials can show ({gain}).", told


def _compared(about: _Study, effects: DepthEffects, these: Sequence[int], others: Sequence[int]) -> Told:
    """A comparison, whose interval ends where the metric's own differences end."""
    groups, found = effects.groups, effects.compare(these, others)
    low, high = bounds_of(about.metric, about.is_lower_better)
    found = replace(found, low=max(found.low, low - high), high=min(found.high, high - low))
    ends = [(groups[some[0]][0], groups[some[-1]][1]) for some in (these, others)]
    return Told(ends[0], ends[1], found)


def _consequence(about: _Study, told: Told) -> str:
    """``accuracy is 0.190 lower``, of the other depths."""
    where = "lower" if told.found.difference > 0 else "higher"
    return f"{about.metric.replace('_', ' ')} is {abs(told.found.difference):.3f} {where}"


def _interval(told: Told) -> str:
    """The interval of a difference, as that of its size."""
    low, high = told.found.low, told.found.high
    low, high = (low, high) if told.found.difference > 0 else (-high, -low)
    return f"95% interval {low:.3f} to {high:.3f}"


def _plateau(effects: DepthEffects, sign: float) -> tuple[int, int]:
    """The first and the last of the neighbouring groups none of which is clearly worse than the best."""
    places = range(len(effects.groups))
    best = max(places, key=lambda place: sign * (effects.compare([place], [0]).difference if place else 0.0))

    def is_as_good(place: int) -> bool:
        return not effects.compare([best], [place]).is_clear

    first = last = best
    while first > 0 and is_as_good(first - 1):
        first -= 1
    while last + 1 < len(places) and is_as_good(last + 1):
        last += 1
    return first, last


def _on_fields(shares: Mapping[str, float], searched: Sequence[str], count: int) -> list[str]:
    """Which fields besides depth matter, and of which that cannot be said."""
    named = [name for name in shares if name != "depth"]
    others = [name for name in searched if name not in shares]
    if not named:
        return [f"None of the other fields stands out from chance in {count} trials."] if others else []
    text = f"{_listed(named)} {'matters' if len(named) == 1 else 'matter'} next"
    text += f"; {_listed(others)} {'does' if len(others) == 1 else 'do'} not" if others else ""
    return [f"{text[0].upper()}{text[1:]}, as far as {count} trials tell."]


def _listed(names: Sequence[str]) -> str:
    words = [_WORDS.get(name, name.replace("_", " ")) for name in names]
    if len(words) > _MOST_FIELDS + 1:
        words = [*words[:_MOST_FIELDS], f"{len(words) - _MOST_FIELDS} others"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _on_tie(about: _Study, trials: Sequence[_Trial], effects: DepthEffects) -> tuple[tuple[int, ...], str]:
    """The trials that do not differ from the best beyond noise, the best first, and a sentence about them.

    The truly best strategy is among them in 95% of studies (Gupta, On some multiple decision rules, 1965).
    """
    sign = -1.0 if about.is_lower_better else 1.0
    repeated = sum(len(scores) - 1 for scores in about.repeats) >= _LEAST_REPEATS
    noise, freedom = _noise_of(about.repeats) if repeated else effects.noise(about.is_lower_better)
    reach = noise * _reach(len(trials), freedom)
    best = max(sign * trial.score for trial in trials)
    tied = sorted((one for one in trials if sign * one.score >= best - reach), key=lambda one: -sign * one.score)
    numbers = tuple(one.number for one in tied)
    if len(tied) == 1:
        return numbers, f"Trial {tied[0].number} is better than all others beyond noise."
    cheapest = min(tied, key=lambda one: one.seconds)
    shown = ", ".join(map(str, numbers[:_MOST_TRIALS]))
    more = f" and {len(tied) - _MOST_TRIALS} more" if len(tied) > _MOST_TRIALS else ""
    return numbers, (
        f"{len(tied):,} trials are a tie ({shown}{more}), since noise alone can put scores {reach:.3f} apart; "
        f"the cheapest of them is trial {cheapest.number} ({cheapest.depth} blocks, {cheapest.seconds:.1f} s)."
        + ("" if repeated else " confirm.seeds=3 would tell the best of them apart.")
    )


def _noise_of(repeats: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The deviation of the scores of one strategy over new seeds, and its degrees of freedom."""
    freedom = sum(len(scores) - 1 for scores in repeats)
    return math.sqrt(sum(float(np.var(scores)) * len(scores) for scores in repeats) / freedom), freedom


def _reach(count: int, freedom: int) -> float:
    """How far below the best of equal scores a given one may be, in 95% of cases, in deviations of a score.

    Args:
        count: Number of scores.
        freedom: Degrees of freedom with which the deviation is known.
    """
    from scipy.special import ndtri

    rng, draws = np.random.default_rng(0), 20_000
    # The largest of count - 1 normal numbers, the given one, and the deviation that is estimated.
    largest = ndtri(rng.uniform(size=draws) ** (1 / max(1, count - 1)))
    errors = (largest - rng.standard_normal(draws)) / np.sqrt(rng.chisquare(freedom, draws) / freedom)
    return float(np.quantile(errors, 0.95))
