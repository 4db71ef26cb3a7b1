"""Reconciling what ended processes left behind: trials, MLflow runs, checkpoints and snapshots."""

from optuna.trial import TrialState

from search.scheduling import Ledger, recover
from search.storage import CHECKPOINT, CONFIRMATIONS, REASON, RUN_ID, outcome_of
from search.tracking import KEY_TAG, AwayError
from search.trials.open_study import OpenStudy
from search.trials.snapshots import drop_old_snapshots


def recover_trials(open_study: OpenStudy, ended: str | None = None) -> bool:
    """Queue the trials of ended processes again, with a message for each.

    Args:
        open_study: What the study's trials share.
        ended: Name of a process, on any host, that is known to have ended, as :func:`search.processes.owner` names it.

    Returns:
        Whether there were any.
    """
    with open_study.lock:
        recovered = recover(open_study.study, open_study.config.retries, ended)
    for trial in recovered:
        again = "is tried again" if outcome_of(trial) == "killed" else "has failed for good"
        open_study.watcher.say(f"trial {trial.number} had been killed; it {again}")
    return bool(recovered)


def reconcile_runs(open_study: OpenStudy) -> None:
    """End every MLflow run that still shows as running though its trial is over, and remove what was left on disk.

    Trials of ended processes must be queued again first. If MLflow cannot be reached nothing is done: the study's end
    and the next start reconcile too.
    """
    try:
        # The spool of ended processes may hold the end of a run.
        open_study.tracker.deliver()
        # Runs are read before trials, so that each run of the list has its trial in the list of trials.
        running = open_study.tracker.reader.running()
    except AwayError:
        return
    trials = {str(t.number): t for t in open_study.study.get_trials(deepcopy=False)}
    scores = open_study.study.user_attrs.get(CONFIRMATIONS, {})
    for run_id, tags in running.items():
        trial = trials.get(tags.get("unfreeze.trial", ""))
        if run_id == open_study.parent_run or (trial is not None and trial.state == TrialState.RUNNING):
            continue
        is_its_run = trial is not None and trial.user_attrs.get(RUN_ID) in (run_id, tags.get(KEY_TAG))
        outcome = outcome_of(trial) if trial is not None and is_its_run else None
        if tags.get("unfreeze.seed") in scores.get(tags.get("unfreeze.confirms"), {}):
            # A training with a new seed, whose process was killed between its score and the end of its run.
            outcome = "complete"
        if outcome != "complete":
            open_study.tracker.checkpoints.delete(run_id)
        reason = trial.user_attrs.get(REASON, "") if trial is not None and outcome == "failed" else ""
        open_study.tracker.finish(run_id, outcome or "killed", reason)
    ledger = Ledger(open_study.study)
    still_kept = {trial.number for trial in ledger.kept(open_study.config.checkpoints.keep)}
    for beaten in ledger.ranked:
        if beaten.number not in still_kept and beaten.user_attrs.get(CHECKPOINT):
            open_study.tracker.checkpoints.delete(beaten.user_attrs[RUN_ID])
    drop_old_snapshots(open_study)
