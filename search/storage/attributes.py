"""How a trial ended, in the words that Optuna, MLflow and our tags use for it."""

from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from search.storage.private_apis import queued_params

Outcome = Literal["complete", "pruned", "failed", "killed"]

# Attributes of an Optuna trial. Of one that was told while MLflow was away, RUN_ID is the run's key, to which
# ``Tracker.id_of`` knows the id.
OUTCOME, REASON, RUN_ID, OWNER, ATTEMPT, FINGERPRINT, CHECKPOINT, PRESET, MODEL, STRATEGY, DEPTH, SEED = (
    "outcome",
    "reason",
    "mlflow_run_id",
    "owner",
    "attempt",
    "fingerprint",
    "checkpoint",
    "preset",
    "model",
    "strategy",
    "depth_blocks",
    "seed",
)

#: Seconds that a trial would have taken longer, had it computed what it read; estimated.
SPARED = "seconds_spared"

# How trials follow one another: the killed one that is tried again, the paused one that goes on, where it was paused.
RETRY_OF, CONTINUES, PAUSED = "retry_of", "continues", "paused_at_epoch"

#: What the reason of a trial begins with that failed for want of memory.
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, slots=True)
class Ending:
    """The state Optuna stores, the status MLflow shows, and what the terminal prints."""

    state: TrialState
    status: str
    style: str


# A pruned run is KILLED in MLflow, not FINISHED: it was stopped before its end, and on purpose, as its tag says.
ENDINGS: dict[Outcome, Ending] = {
    "complete": Ending(TrialState.COMPLETE, "FINISHED", "green"),
    "pruned": Ending(TrialState.PRUNED, "KILLED", "yellow"),
    "failed": Ending(TrialState.FAIL, "FAILED", "red"),
    "killed": Ending(TrialState.FAIL, "KILLED", "magenta"),
}


def outcome_of(trial: FrozenTrial) -> Outcome | None:
    """How a trial ended; ``None`` while it waits or runs."""
    if trial.state == TrialState.COMPLETE:
        return "complete"
    if trial.state == TrialState.PRUNED:
        return "pruned"
    if trial.state == TrialState.FAIL:
        # One that another host's heartbeat gave up on carries no outcome of its own.
        return "failed" if trial.user_attrs.get(OUTCOME) == "failed" else "killed"
    return None


def has_drawn(trial: FrozenTrial) -> bool:
    """Whether anything of a trial's strategy is known; of a space without choices, whether it was sampled."""
    return bool(trial.params or queued_params(trial) or FINGERPRINT in trial.user_attrs)


def score_of(trial: FrozenTrial) -> float | None:
    """The trial's value of the study's metric; ``None`` where it has none.

    Unlike ``FrozenTrial.value`` it can be asked of trials with costs, whose values follow the metric's.
    """
    return trial.values[0] if trial.values else None


PARENT_RUN, SUGGESTED_LR = "mlflow_parent_run", "suggested_lr"


IDENTITY = "identity"


WINNER = "winner"


PRESETS_QUEUED, FRONT = "presets_queued", "pareto_front"


#: Attribute of the study: the best probe's values, its score, and how many probes there were.
SWEEP = "probe_sweep"


#: Attribute of a study: what its images are like; and how many blocks its model has.
FEATURES, BLOCKS = "data_features", "num_blocks"
