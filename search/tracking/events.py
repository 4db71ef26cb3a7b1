"""Events of a trial, as records: each goes once to every listener (MLflow, the terminal, the command's process)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from optuna.trial import FrozenTrial

from search.storage import ATTEMPT, CONTINUES, PREDICTED, PRESET, REASON, RETRY_OF, Outcome, outcome_of, score_of
from strategies import Strategy
from trainers import EpochResult


@dataclass(frozen=True, slots=True)
class TrialAsked:
    """A trial was asked for.

    Args:
        number: Its number in Optuna.
        run: Key of its MLflow run.
    """

    number: int
    run: str


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A trial's strategy was sampled, and its training begins.

    Args:
        number: Number of the trial.
        run: Key of its run.
        strategy: The sampled strategy.
        label: The strategy in one short line.
        model: Name of the model.
        weights: Where the model's weights come from.
        weights_digest: Digest of the weights.
        depth: How many blocks are trained.
        seed: Seed of the training.
        fingerprint: Digest of the strategy on this model.
        attempt: How many earlier attempts were killed.
        preset: The preset that the strategy is; empty for none.
        low_rung_images: Share of the images that epochs up to the first rung see; None for all.
        predicted: What the learnt policy predicted (see :class:`search.scheduling.Plan`); None where it did not choose.
        worker: Number of the worker that trains the trial.
    """

    number: int
    run: str
    strategy: Strategy
    label: str
    model: str
    weights: str
    weights_digest: str
    depth: int
    seed: int
    fingerprint: str
    attempt: int = 0
    preset: str = ""
    low_rung_images: float | None = None
    predicted: Mapping[str, Any] | None = None
    worker: int = 0


@dataclass(frozen=True, slots=True)
class TrialPlanned:
    """A strategy was applied to its model.

    Args:
        run: Key of the trial's run.
        strategy: The strategy as the trainer trains it.
        manifest: How each parameter is trained in each phase.
        reuse: One line that says what is shared with other trials.
        parameters_trained: How many numbers of the model are trained in any epoch.
    """

    run: str
    strategy: Strategy
    manifest: Sequence[Mapping[str, Any]]
    reuse: str
    parameters_trained: int


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """An epoch ended, or one of the parts into which epochs are divided.

    Args:
        number: Number of the trial.
        run: Key of its run.
        result: Result of the epoch.
        score: Value of the study's metric.
        seconds: Duration of all epochs so far.
        compiled: How the model was compiled, or why not; empty where no compilation was asked for.
        micro_batches: Parts into which batches were divided because memory ran out.
        worker: Number of the worker that trains the trial.
    """

    number: int
    run: str
    result: EpochResult
    score: float
    seconds: float
    compiled: str = ""
    micro_batches: int = 1
    worker: int = 0


@dataclass(frozen=True, slots=True)
class TrialTrained:
    """A trial is trained, and about to be told.

    Args:
        run: Key of its run.
        outcome: How the training ended.
        reason: Why; empty for a complete trial.
        score: Score of the best epoch of a complete trial.
        best_epoch: Number of that epoch.
        traceback: Traceback of a failed trial's error.
    """

    run: str
    outcome: Outcome
    reason: str = ""
    score: float | None = None
    best_epoch: int | None = None
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial was told: it counts, whatever happens to this process.

    Args:
        number: Number of the trial.
        run: Key of its run.
        outcome: How the trial ended.
        reason: Why; empty for a complete trial.
        attempt: How many earlier attempts were killed.
        will_retry: Whether the trial was queued again.
        score: Score that was told, or a pruned trial's last report; None where there is neither.
        seconds: Duration of the trial.
        best: Best score of the study; None where there is none.
        preset: The preset that its strategy is; empty for none.
        chosen: Why the learnt policy chose it; empty where it did not.
        continues: Number of the paused trial that this trial resumed.
        is_retry: Whether the trial is a further attempt.
        peak_bytes: Peak of its process's memory on the device.
    """

    number: int
    run: str
    outcome: Outcome
    reason: str
    attempt: int
    will_retry: bool
    score: float | None
    seconds: float
    best: float | None
    preset: str = ""
    chosen: str = ""
    continues: int | None = None
    is_retry: bool = False
    peak_bytes: int = 0

    @classmethod
    def of(cls, told: FrozenTrial, run: str, best: float | None = None, will_retry: bool = False) -> "TrialEnded":
        """The end of a trial as Optuna has it."""
        outcome, attrs = outcome_of(told), told.user_attrs
        assert outcome is not None, "the trial was told"
        return cls(
            number=told.number,
            run=run,
            outcome=outcome,
            reason=attrs.get(REASON, ""),
            attempt=int(attrs.get(ATTEMPT, 0)),
            will_retry=will_retry,
            score=score_of(told),
            seconds=told.duration.total_seconds() if told.duration else 0.0,
            best=best,
            preset=attrs.get(PRESET) or "",
            chosen=attrs.get(PREDICTED, {}).get("reason", ""),
            continues=attrs.get(CONTINUES),
            is_retry=RETRY_OF in attrs,
        )


Event: TypeAlias = TrialAsked | TrialStarted | TrialPlanned | EpochEnded | TrialTrained | TrialEnded
Listener: TypeAlias = Callable[[Event], None]

#: Events that are sent to another process, by name.
_PASSED_ON = {kind.__name__: kind for kind in (TrialStarted, EpochEnded, TrialEnded)}


def as_json(event: Event) -> dict[str, Any] | None:
    """An event as a JSON object for another process; None for an event that is not sent."""
    name = type(event).__name__
    if name not in _PASSED_ON:
        return None
    found = asdict(event)
    if isinstance(event, TrialStarted):
        found["strategy"] = event.strategy.to_dict()
    return {"event": name, **found}


def from_json(facts: Mapping[str, Any]) -> Event | None:
    """The event of an object that :func:`as_json` gave; None for any other object."""
    values = dict(facts)
    kind = _PASSED_ON.get(values.pop("event"))
    if kind is None:
        return None
    if kind is TrialStarted:
        values["strategy"] = Strategy.from_dict(values["strategy"])
    elif kind is EpochEnded:
        values["result"] = EpochResult(**values["result"])
    event: Event = kind(**values)
    return event
