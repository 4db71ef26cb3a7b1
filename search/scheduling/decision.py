"""What becomes of a trial after a result: it goes on, is paused, or stops."""

from dataclasses import dataclass
from enum import Enum

from optuna.trial import Trial

from search.config import PrunerConfig
from search.scheduling.rungs import RUNGS


class Step(Enum):
    """What a trial does next."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """A step, and why it is taken.

    Args:
        step: What the trial does next.
        reason: A sentence without its full stop; empty where the trial continues.
    """

    step: Step
    reason: str = ""


CONTINUE = Decision(Step.CONTINUE)
#: The trial resumes in the next run of the study.
HOURS_ARE_OVER = Decision(Step.PAUSE, "the hours of the search are over")


def decide(trial: Trial, pruner: PrunerConfig, epoch: float, epochs: int) -> Decision:
    """Ask the pruner about a trial's last report.

    Args:
        trial: Has reported its score.
        pruner: Which pruner, of a study with one objective.
        epoch: How many epochs are done.
        epochs: How many the trial has; after the last of them it is not stopped, which would lose its score.
    """
    # Without a pruner Optuna would still read the trial, which takes some 5 ms.
    if pruner.name == "none" or epoch >= epochs or not trial.should_prune():
        return CONTINUE
    if pruner.name == RUNGS:
        return Decision(Step.PAUSE, f"paused at epoch {epoch:g}")
    return Decision(Step.STOP, f"stopped after epoch {epoch:g} by pruner {pruner.name}")
