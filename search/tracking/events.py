"""What happens to a trial, as records: each is told once, to MLflow, to the terminal and to the command's process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from optuna.trial import FrozenTrial

from search.storage import ATTEMPT, CONTINUES, PRESET, REASON, RETRY_OF, Outcome, outcome_of, score_of
from strategies import Strategy
from trainers import EpochResult


@dataclass(frozen=True, slots=True)
class TrialAsked:
    """A trial was asked for.

    Args:
        number: Its number in Optuna.
        run: The key by which its MLflow run is known.
    """

    number: int
    run: str


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A trial's strategy was sampled, and its training begins.

    Args:
        number: Of the trial.
        run: Key of its run.
        strategy: As it was sampled.
        label: The strategy in one short line.
        model: Name of the model.
        weights: Where the model's weights come from.
        weights_digest: Of their content.
        depth: Blocks that are trained.
        seed: Of the training.
        fingerprint: Of the strategy on this model.
        attempt: How often the trial was tried before.
        preset: The preset that the strategy is; empty for none.
        low_rung_images: Share of the images that epochs up to the first rung see; None for all.
        worker: Place of the process that trains it.
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
    worker: int = 0


@dataclass(frozen=True, slots=True)
class TrialPlanned:
    """A strategy was applied to its model.

    Args:
        run: Key of the trial's run.
        strategy: As the trainer trains it.
        manifest: Per parameter and phase, what is trained and how.
        reuse: In one line, what is shared with other trials.
        parameters_trained: Numbers of the model that are trained in some epoch.
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
        number: Of the trial.
        run: Key of its run.
        result: What the epoch came to.
        score: The study's metric.
        seconds: Of all epochs so far.
        compiled: What came of compiling the model; empty where that was not asked for.
        micro_batches: Into how many parts batches were divided, for want of memory.
        worker: Place of the process that trains it.
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
        outcome: How it ended.
        reason: Why; empty where that needs no word.
        score: Of the best epoch of a complete trial.
        best_epoch: Which that was.
        traceback: Of a failed trial's error.
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
        number: Of the trial.
        run: Key of its run.
        outcome: How it ended.
        reason: Why; empty where that needs no word.
        attempt: How often the trial was tried before.
        will_retry: Whether it was queued again.
        score: What it was told, or its last report; None where it has none.
        seconds: From its begin to its end.
        best: The study's best score; None where there is none.
        preset: The preset that its strategy is; empty for none.
        continues: Number of the paused trial that it went on with.
        is_retry: Whether it is a further attempt.
        peak_bytes: What its process took of its device at most.
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
            continues=attrs.get(CONTINUES),
            is_retry=RETRY_OF in attrs,
        )


Event: TypeAlias = TrialAsked | TrialStarted | TrialPlanned | EpochEnded | TrialTrained | TrialEnded
Listener: TypeAlias = Callable[[Event], None]

#: Events that another process is told, by name.
_PASSED_ON = {kind.__name__: kind for kind in (TrialStarted, EpochEnded, TrialEnded)}


def as_json(event: Event) -> dict[str, Any] | None:
    """An event that another process is told, as JSON takes it; None for one that it is not told."""
    name = type(event).__name__
    if name not in _PASSED_ON:
        return None
    found = asdict(event)
    if isinstance(event, TrialStarted):
        found["strategy"] = event.strategy.to_dict()
    return {"event": name, **found}


def from_json(facts: Mapping[str, Any]) -> Event | None:
    """The event that :func:`as_json` gave; None for a line that is no event."""
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
