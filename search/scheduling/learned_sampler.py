"""The learnt policy as a sampler for any Optuna study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from threading import Lock
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.scheduling.candidates import Draws, nth_of_best
from search.scheduling.learned import (
    Candidate,
    LearnedPolicy,
    ModelFeatures,
    Prior,
    Seen,
    State,
    StrategyFeatures,
    TaskFeatures,
)

_FEATURES = frozenset(field.name for field in fields_of(StrategyFeatures))
# Fields that are names, and numbers that are above 0; all others are numbers.
_NAMES, _POSITIVE = ("optimizer", "schedule", "augmentation"), ("lr", "batch_size")
# Candidates a choice; a third are drawn around the best trials.
_CANDIDATES, _BEST = 128, 3
_STATES = {
    TrialState.RUNNING: State.RUNNING,
    TrialState.COMPLETE: State.FINISHED,
    TrialState.PRUNED: State.FINISHED,
    TrialState.FAIL: State.FAILED,
}
_UNKNOWN_MODEL = ModelFeatures("unknown")


class LearnedSampler(BaseSampler):
    """Chooses hyperparameters of fine-tuning by what thousands of fine-tunings elsewhere have taught.

    Parameters that mean the same for all fine-tunings, such as the learning rate, are told to the learnt policy by the
    names of :class:`search.StrategyFeatures`. All others count by what the study itself has seen.
    Scores that are reported after each epoch (``trial.report``) make predictions better, and so does the model.

    >>> import optuna
    >>> from search import LearnedSampler, TaskFeatures
    >>> sampler = LearnedSampler(TaskFeatures(images=2000, classes=10), epochs=5, parameters={"learning_rate": "lr"})
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)

    Args:
        task: The data and the metric; None if nothing is known of them. With direction ``minimize``, scores are taken
            with their sign changed, and ``lowest`` and ``highest`` too.
        model: The model that is fine-tuned; None if it is not known.
        epochs: Epochs of a trial.
        parameters: Parameter to the field of ``StrategyFeatures`` that it is; by default a parameter that has the name
            of a field is that field.
        search_space: Distributions by parameter, for the choice of the first trials. Without it, what no completed
            trial has is drawn at random, as is the whole first trial.
        seed: Seed of what is drawn. The same seed and the same trials give the same choices.
        prior: What fine-tunings elsewhere have taught; None for the numbers that come with Unfreeze.

    Raises:
        ValueError: A parameter is mapped to a field that ``StrategyFeatures`` lacks.
    """

    def __init__(
        self,
        task: TaskFeatures | None = None,
        model: ModelFeatures | None = None,
        *,
        epochs: int = 1,
        parameters: Mapping[str, str] | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int = 0,
        prior: Prior | None = None,
    ) -> None:
        wrong = sorted(set((parameters or {}).values()) - _FEATURES)
        if wrong:
            raise ValueError(f"parameters: {wrong[0]!r} is not one of {', '.join(sorted(_FEATURES))}")
        self._task, self._model, self._epochs = task or TaskFeatures(images=1000), model or _UNKNOWN_MODEL, epochs
        self._parameters = dict(parameters or {})
        self._search_space = None if search_space is None else dict(search_space)
        self._seed, self._policy = seed, LearnedPolicy(prior, seed)
        self._intersection = IntersectionSearchSpace()
        # Threads of one study (``n_jobs``) share the policy.
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock, for a copy in another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """A copy with a lock of its own."""
        self.__dict__.update(state, _lock=Lock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that the policy chooses: all of the given space, or those that all completed trials have."""
        found = self._search_space if self._search_space is not None else self._intersection.calculate(study)
        return {name: one for name, one in sorted(found.items()) if not one.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the strategy that the policy chooses.

        Raises:
            ValueError: The study has more than one objective.
        """
        if len(study.directions) > 1:
            raise ValueError("LearnedSampler searches with one objective only")
        if not search_space:
            return {}
        trials = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
        known = [one for one in trials if search_space.keys() <= one.params.keys() and one.state in _STATES]
        sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
        seen = [self._seen(one, search_space, sign) for one in known]
        ranked = sorted(range(len(known)), key=lambda place: -max(seen[place].scores, default=-math.inf))
        best = [known[place].params for place in ranked[:_BEST]]
        rng = np.random.default_rng([self._seed, trial.number])
        drawn = [_drawn(search_space, rng, nth_of_best(best, place) or {}) for place in range(_CANDIDATES)]
        with self._lock:
            choice = self._policy.choose(self._task, seen, [self._candidate(params, search_space) for params in drawn])
        assert choice.new is not None, "no trial is paused"
        return drawn[choice.new]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that the policy does not know yet, at random."""
        seed = np.random.SeedSequence([self._seed, trial.number, *param_name.encode()]).generate_state(1)[0]
        return RandomSampler(seed=int(seed)).sample_independent(study, trial, param_name, param_distribution)

    def _candidate(self, params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> Candidate:
        told: dict[str, Any] = {}
        own: list[float] = []
        for name, distribution in space.items():
            field = self._parameters.get(name, name)
            if _is_told(field, distribution):
                told[field] = params[name]
            else:
                own += _scaled(distribution, params[name])
        return Candidate(StrategyFeatures(**told), self._model, self._epochs, own=tuple(own))

    def _seen(self, trial: FrozenTrial, space: Mapping[str, BaseDistribution], sign: int) -> Seen:
        """A trial with its scores by epoch; one that reported none has its final value alone."""
        scores = [sign * trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        if not scores and trial.state == TrialState.COMPLETE and trial.value is not None:
            scores = [sign * trial.value]
        known = tuple(score for score in scores if math.isfinite(score))
        # A trial whose scores are no numbers has diverged.
        state = State.FAILED if scores and not known else _STATES[trial.state]
        # Without measured seconds, which would make each search choose other trials; the prior predicts them.
        return Seen(self._candidate(trial.params, space), known, (), state)


def _drawn(space: Mapping[str, BaseDistribution], rng: np.random.Generator, near: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters at random, or near those of a trial."""
    draws = Draws(rng, near)
    for name, distribution in space.items():
        match distribution:
            case CategoricalDistribution(choices=choices):
                draws.suggest_categorical(name, tuple(choices))
            case FloatDistribution(low=low, high=high, log=log, step=float_step):
                draws.suggest_float(name, low, high, log=log, step=float_step)
            case IntDistribution(low=low, high=high, log=log, step=step):
                draws.suggest_int(name, low, high, log=log, step=step)
    return draws.params


def _is_told(field: str, distribution: BaseDistribution) -> bool:
    """Whether a parameter is a field that the policy knows, and all its values are such as that field has."""
    if field not in _FEATURES:
        return False
    values: Sequence[Any] = (getattr(distribution, "low", None),)
    if isinstance(distribution, CategoricalDistribution):
        values = distribution.choices
    if field in _NAMES:
        return all(isinstance(value, str) for value in values)
    return all(isinstance(value, int | float) and (value > 0 or field not in _POSITIVE) for value in values)


def _scaled(distribution: BaseDistribution, value: Any) -> Sequence[float]:
    """A parameter's place between the ends of its range, or for choices 1 at the chosen."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return [float(value == choice) for choice in choices[1:]]
        case FloatDistribution(low=low, high=high, log=log) | IntDistribution(low=low, high=high, log=log):
            start, end, at = (math.log(x) if log else float(x) for x in (low, high, value))
            return [(at - start) / (end - start)]
    return []
