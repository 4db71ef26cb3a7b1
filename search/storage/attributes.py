"""Names of the attributes of trials and studies in Optuna's store, and how a trial may end."""

from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

Outcome = Literal["complete", "pruned", "failed", "killed"]

# Attributes of trials.
#: How the trial ended; an ``Outcome``.
OUTCOME = "outcome"
#: Why it ended so, as a sentence.
REASON = "reason"
#: Id of the trial's MLflow run; its key where the trial was told while MLflow was away (``Reader.id_of`` finds the id).
RUN_ID = "mlflow_run_id"
#: The process that trains the trial, as :func:`search.processes.owner` names it.
OWNER = "owner"
#: How many earlier attempts were killed.
ATTEMPT = "attempt"
#: Digest of the strategy on its model.
FINGERPRINT = "fingerprint"
#: Path of the checkpoint among the run's artifacts.
CHECKPOINT = "checkpoint"
#: Name of the preset that the strategy is.
PRESET = "preset"
#: Values of the best probe of a sweep that the space does not hold, by field; the parameters have the nearest.
OWN_VALUES = "own_values"
#: Name of the model: a parameter of the trial where several models are searched, and of every MLflow run.
MODEL = "model"
#: The strategy's fields.
STRATEGY = "strategy"
#: How many blocks are trained.
DEPTH = "depth_blocks"
#: Seed of the training; also a parameter of the MLflow run, as is ``DEPTH``.
SEED = "seed"
#: Estimate of the seconds that the trial would have taken longer without its cache.
SPARED = "seconds_spared"
#: Number of the trial that this trial tries again: it was killed, or MLflow has lost its run or its checkpoint.
RETRY_OF = "retry_of"
#: Number of the paused trial that this trial resumes.
CONTINUES = "continues"
#: Epoch after which the trial was paused.
PAUSED = "paused_at_epoch"
#: What the learnt policy predicted when it chose the trial, and why it did; see ``search.scheduling.Plan``.
PREDICTED = "predicted"
#: Training loss of each epoch.
LOSSES = "train_losses"

# Attributes of studies.
#: What makes two studies comparable, such as the metric; a resumed study must have the same.
IDENTITY = "identity"
#: Id of the study's MLflow run.
PARENT_RUN = "mlflow_parent_run"
#: Key of the study's MLflow run, stored before the run begins.
PARENT_KEY = "mlflow_parent_key"
#: The learning rate of the range test, around which ``strategy.lr`` is centred.
SUGGESTED_LR = "suggested_lr"
#: The best linear probe's values, its score, and how many probes there were.
SWEEP = "probe_sweep"
#: The winner, as a mapping.
WINNER = "winner"
#: MLflow runs of the trials on the Pareto front.
FRONT = "pareto_front"
#: Statistics of the images, by which similar studies are found.
FEATURES = "data_features"
#: Seconds that the end of the search took without the scoring of images, and the host on which it did.
END = "end_seconds"
#: Gain that the learnt policy expects of more seconds of search, as of the last end of the search.
EXPECTED = "expected_gain"
#: Number of blocks of each model.
BLOCKS = "num_blocks"
#: Of each model: parameters, multiply-adds of an image of its usual size, and of a study's image in each block.
MODEL_FACTS = "model_facts"
#: Scores of trainings with new seeds by trial and seed, null where training failed. So no pair is trained twice.
CONFIRMATIONS = "confirmations"

#: Begin of the reason of a trial that ran out of memory.
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, slots=True)
class Ending:
    """How an outcome appears: its state in Optuna, its status in MLflow, and its colour in the terminal."""

    state: TrialState
    status: str
    style: str


# A pruned run is KILLED in MLflow, not FINISHED: it was stopped before its end, on purpose, as its tag says.
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
        # A trial whose heartbeats have stopped has no attribute of its outcome: Optuna told it.
        return "failed" if trial.user_attrs.get(OUTCOME) == "failed" else "killed"
    return None


def score_of(trial: FrozenTrial) -> float | None:
    """The trial's value of the study's metric; ``None`` where the trial has no value.

    Unlike ``FrozenTrial.value`` it also serves studies with costs, whose values follow the metric's.
    """
    return trial.values[0] if trial.values else None
