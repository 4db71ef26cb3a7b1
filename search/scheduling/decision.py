"""Decision about a trial after a result: it continues, is paused, or stops."""

from dataclasses import dataclass
from enum import Enum

from optuna.trial import Trial

from search.config import PrunerConfig
from search.scheduling.rungs import AUTO, RUNGS


class Step(Enum):
    """The next step of a trial."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """A step and its reason.

    Args:
        step: The next step of the trial.
        reason: A sentence without its full stop; empty where the trial continues.
    """

    step: Step
    reason: str = ""


CONTINUE = Decision(Step.CONTINUE)
#: The trial resumes in the next run of the study.
HOURS_ARE_OVER = Decision(Step.PAUSE, "the time of the search is over")


def decide(trial: Trial, pruner: PrunerConfig, epoch: float, epochs: int) -> Decision:
    """Ask the pruner about a trial's last report.

    Args:
        trial: A trial that has reported its score.
        pruner: The pruner, of a study with one objective.
        epoch: How many epochs are done.
        epochs: How many epochs the trial has; after the last it is not stopped, since its score would be lost.
    """
    # Without a pruner should_prune would still read the trial from the store, which takes some 5 ms.
    if pruner.name == "none" or epoch >= epochs or not trial.should_prune():
        return CONTINUE
    if pruner.name == RUNGS:
        return paused(epoch)
    name = "median" if pruner.name == AUTO else pruner.name
    return Decision(Step.STOP, f"stopped after epoch {epoch:g} by pruner {name}")


def paused(epoch: float) -> Decision:
    """The decision to pause after an epoch."""
    return Decision(Step.PAUSE, f"paused at epoch {epoch:g}")
