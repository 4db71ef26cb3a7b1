"""One trial, top to bottom: it is trained with a heartbeat, its checkpoint is kept if it is good, it is committed."""

import traceback
from collections.abc import Callable

from optuna.trial import FrozenTrial

from search.processes import RankLostError, TimeIsOverError
from search.scheduling import CONTINUE, HOURS_ARE_OVER, Heartbeat, Ledger
from search.storage import ATTEMPT, CHECKPOINT, OUT_OF_MEMORY
from search.tracking import NoRoomError, TrialTrained, log_pictures
from search.trials.commit import commit, kill_asked
from search.trials.open_study import OpenStudy
from search.trials.record import Asked, Ended, Sampled, Trained
from search.trials.training import train
from strategies import UnfreezeError
from trainers import free_memory, is_out_of_memory, leave_onednn_if_broken, pictures


def run_trial(open_study: OpenStudy, ledger: Ledger, asked: Asked, sampled: Sampled | Exception) -> FrozenTrial:
    """Train one strategy and commit the trial.

    A trial that goes wrong is told as failed, with its reason. A trial that is interrupted (Ctrl-C, SIGTERM) is told as
    killed and queued again before the interrupt is raised again.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger, which takes the trial in.
        asked: The trial.
        sampled: What it trains, or why its strategy cannot be sampled.

    Raises:
        WriteError: MLflow cannot be told that the trial failed. The trial is then not committed, so that it is retried.
    """
    with Heartbeat(asked.trial):
        try:
            ended = attempt(open_study, ledger, asked, lambda: train(open_study, asked, sampled))
        except (KeyboardInterrupt, SystemExit):
            kill_asked(open_study, asked)
            raise
    return commit(open_study, ledger, asked, ended)


def attempt(open_study: OpenStudy, ledger: Ledger, asked: Asked, training: Callable[[], Trained]) -> Ended:
    """Train a trial, and keep its checkpoint if it is among the best, or the reason why it failed.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger.
        asked: The trial.
        training: Trains the trial; an error that it raises ends the trial.

    Raises:
        NoRoomError: The disk is full, which is not the trial's fault: it is tried again.
    """
    try:
        return _keep(open_study, ledger, asked, training())
    except NoRoomError:
        raise
    except TimeIsOverError:
        ended = Ended("killed", is_next_time=True)
    except Exception as error:  # any error is the reason for this trial's failure
        leave_onednn_if_broken(error)
        ended = _ended_by(open_study, asked, error)
        is_lost = isinstance(error, RankLostError)
        trace = "" if is_lost else traceback.format_exc()
        open_study.announce(TrialTrained(asked.run, ended.outcome, ended.reason, traceback=trace))
    # Only here: before, the error's traceback still held the trial's tensors, whose memory the next trial may need.
    free_memory()
    return ended


def _keep(open_study: OpenStudy, ledger: Ledger, asked: Asked, trained: Trained) -> Ended:
    """Keep the checkpoint and pictures of a training, and return how the trial ends."""
    record, decision, number = trained.record, trained.decision, asked.trial.number
    if decision is HOURS_ARE_OVER:
        return Ended("killed", is_next_time=True)
    if decision is not CONTINUE:
        open_study.announce(TrialTrained(asked.run, "pruned", decision.reason))
        return Ended("pruned", reason=decision.reason)
    best = record.best
    if best.shown is not None and ledger.would_be_kept(number, record.values, 1):
        for run in (asked.run, open_study.parent_run):
            log_pictures(open_study.tracker, run, pictures(open_study.materials.data, best.shown))
    if ledger.would_be_kept(number, record.values, open_study.config.checkpoints.keep):
        asked.trial.set_user_attr(CHECKPOINT, open_study.tracker.checkpoints.save(asked.run, best.state))
    open_study.announce(TrialTrained(asked.run, "complete", score=best.score, best_epoch=best.epoch))
    # Here, so that what a store refuses is this trial's failure.
    open_study.attributes.flush(asked.trial)
    open_study.tracker.flush()
    return Ended("complete", record.values)


def _ended_by(open_study: OpenStudy, asked: Asked, error: Exception) -> Ended:
    """How an error ends a trial. The loss of a rank is not the trial's fault: the trial is tried again."""
    if not isinstance(error, RankLostError):
        return Ended("failed", reason=reason_of(error))
    earlier = int(asked.trial.user_attrs.get(ATTEMPT, 0))
    if earlier < open_study.config.retries:
        return Ended("killed", reason=str(error))
    return Ended("failed", reason=f"{error}, at attempt {earlier + 1} of {earlier + 1}")


def reason_of(error: Exception) -> str:
    """Why a training failed, in one line."""
    first = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {first}"
    return first if isinstance(error, UnfreezeError) else f"{type(error).__name__}: {first}"
