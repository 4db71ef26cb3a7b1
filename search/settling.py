"""What processes left behind that ended before their time: trials, runs and checkpoints."""

from optuna.trial import TrialState

from search.delivery import KEY_TAG
from search.going_on import drop_old_snapshots
from search.ledger import Ledger
from search.outcome import CHECKPOINT, REASON, RUN_ID, outcome_of
from search.recovery import recover
from search.trial import Bench
from search.writer import AwayError


def recover_trials(bench: Bench, ended: str | None = None) -> bool:
    """Queue the trials of ended processes again, which is said.

    Args:
        bench: What the study's trials share.
        ended: A process, on whatever host, that is known to have ended, as :func:`search.recovery.owner` calls it.

    Returns:
        Whether there were any.
    """
    with bench.lock:
        recovered = recover(bench.study, bench.config.retries, ended)
    for trial in recovered:
        again = "is tried again" if outcome_of(trial) == "killed" else "has failed for good"
        bench.watcher.say(f"trial {trial.number} had been killed; it {again}")
    return bool(recovered)


def settle(bench: Bench) -> None:
    """End every MLflow run that still shows as running though its trial is over, and drop what was left on disk.

    Trials of ended processes are to be queued again first. Where MLflow is away, nothing is done: the study's end and
    the next start do this too.
    """
    try:
        # What ended processes have left on disk may be the end of a run.
        bench.tracker.deliver()
        # Runs before trials: of a run that another process begins in between nothing is known then.
        running = bench.tracker.running()
    except AwayError:
        return
    trials = {str(t.number): t for t in bench.study.get_trials(deepcopy=False)}
    for run_id, tags in running.items():
        trial = trials.get(tags.get("unfreeze.trial", ""))
        if run_id == bench.parent_run or (trial is not None and trial.state == TrialState.RUNNING):
            continue
        is_its_run = trial is not None and trial.user_attrs.get(RUN_ID) in (run_id, tags.get(KEY_TAG))
        outcome = outcome_of(trial) if trial is not None and is_its_run else None
        if outcome != "complete":
            bench.tracker.delete_checkpoint(run_id)
        reason = trial.user_attrs.get(REASON, "") if trial is not None and outcome == "failed" else ""
        bench.tracker.finish(run_id, outcome or "killed", reason)
    ledger = Ledger(bench.study)
    still_kept = {trial.number for trial in ledger.kept(bench.config.checkpoints.keep)}
    for beaten in ledger.ranked:
        if beaten.number not in still_kept and beaten.user_attrs.get(CHECKPOINT):
            bench.tracker.delete_checkpoint(beaten.user_attrs[RUN_ID])
    drop_old_snapshots(bench)
