"""A study from its configuration to its answer: open or resume, run trials until the budget ends, crown the winner."""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from optuna.trial import FrozenTrial

from search.config import StudyConfig
from search.executors import Executor, executor_of, run_pool
from search.processes import drop_left_over, stopped_by_signals
from search.reporting import Terminal, disk_lines, importances, next_commands, which_layers, write_note
from search.scheduling import Ledger, pareto_front, ranked
from search.storage import EXPECTED, FRONT, MODEL, RUN_ID, WINNER, taking_turns
from search.study.loop import run_trials
from search.study.opening import lock_place, prepare
from search.study.places import check_places
from search.study.planning import MIN_IMPROVEMENT
from search.study.presets import _queue_presets
from search.study.probe_sweep import sweep_probes
from search.study.whole_time import End, note_end, with_deadline, with_seconds
from search.trials import OpenStudy, is_whole, queue_lost, reconcile_runs, recover_trials, try_again
from search.winner import VERDICT, confirm, crown, describe_verdict, propose
from strategies import Fixed, TrialError
from trainers import DamagedFileError

logger = logging.getLogger(__name__)


class NoTrialFinishedError(TrialError):
    """The budget ended and no trial had completed."""


def run_study(config: StudyConfig, began: float | None = None) -> None:
    """Run or resume a study until its budget is spent, then print the ranking and log the winner as a model.

    Args:
        config: The study's configuration.
        began: When the command began, on ``time.monotonic``: the budget's time then holds for all that the command
            does. None where that time is the search's alone, as in nights.

    Raises:
        UnfreezeError: Something in the configuration, data or weights is wrong; nothing was trained then.
        WriteError: MLflow refuses a write, or there is no room for the writes that wait while MLflow cannot be reached;
            the running trial is tried again when the study resumes.
        AwayError: MLflow cannot be reached at the end, so that no winner can be logged.
        NoTrialFinishedError: Every trial failed.
        KeyboardInterrupt: After the running trial was queued again.
    """
    check_places(config)
    config = with_seconds(config, time.monotonic() if began is None else began)
    with (
        stopped_by_signals(),
        executor_of(config) as executor,
        Terminal(config.metric, costs=config.costs) as terminal,
    ):
        open_study = prepare(config, terminal)
        try:
            open_study, end = with_deadline(open_study, began)
            with taking_turns(lock_place(config), "begin", terminal.say):
                for place in (open_study.temporary, Path(tempfile.gettempdir())):
                    drop_left_over(place)
                recover_trials(open_study)
                reconcile_runs(open_study)
                queue_lost(open_study)
                sweep_probes(open_study)
                _queue_presets(open_study)
            _run_trials(open_study, terminal, executor)
            # One at a time: two processes that end together must not crown two winners.
            with taking_turns(lock_place(config), "finish", terminal.say), open_study.tracker.reader.needed():
                _finish(open_study, terminal, end)
        except Exception:
            open_study.tracker.try_to_finish(open_study.parent_run, "failed")
            raise
        except (KeyboardInterrupt, SystemExit):
            open_study.tracker.try_to_finish(open_study.parent_run, "killed")
            raise
        finally:
            open_study.tracker.close()


def _run_trials(open_study: OpenStudy, terminal: Terminal, executor: Executor | None) -> None:
    ledger = Ledger(open_study.study)
    terminal.study_started(ledger.counted, open_study.config.budget.trials, open_study.deadline)
    if executor is None:
        run_trials(open_study, ledger, lambda: True, terminal.say)
    else:
        run_pool(open_study, executor, terminal, ledger)


def _finish(open_study: OpenStudy, terminal: Terminal, end: End) -> None:
    # A model is logged to the winner's run, which has to have ended before.
    if open_study.tracker.deliver():
        reconcile_runs(open_study)
    # Those that other processes have ended, or whose writes MLflow has refused.
    lost = queue_lost(open_study)
    trials = open_study.study.get_trials(deepcopy=False)
    _tell_expected(open_study, terminal, trials)
    best = [trial for trial in ranked(open_study.study) if trial.number not in lost]
    if not best and not lost:
        terminal.counts(trials)
        raise NoTrialFinishedError("no trial completed, so there is no winner")
    if open_study.config.after.wise_ft or open_study.config.after.soups:
        terminal.say("Scoring mixtures of the best weights on validation")
    confirmed = confirm(open_study, best) if open_study.config.confirm.seeds else []
    began, earlier = time.monotonic(), open_study.study.user_attrs.get(WINNER)
    trial = _first_whole(open_study, [trial for trial, _ in confirmed] or best)
    try:
        winner = crown(open_study, trial, [one for _, one in confirmed])
    except DamagedFileError:
        # The error names the file; without the file, the next run would end with the same error.
        try_again(open_study, trial, "its checkpoint is damaged")
        raise
    entries = {name: entry for space in open_study.spaces.values() for name, entry in space.items()}
    searched = [name for name, entry in entries.items() if not isinstance(entry, Fixed)]
    found = importances(open_study.study)
    # Depth and learning rate first, then the most important fields.
    searched = sorted(searched, key=lambda name: (name not in ("depth", "lr"), -found.shares.get(name, 0.0)))
    searched = [MODEL, *searched] if open_study.chooses_model else searched
    terminal.table(best, searched)
    if open_study.config.costs:
        front = [trial for trial in pareto_front(open_study.study) if trial.number not in lost]
        _tag_front(open_study, front)
        terminal.front(front, searched)
    terminal.counts(trials)
    terminal.say(which_layers(open_study.study).paragraph)
    terminal.importances(found)
    terminal.winner(winner)
    write_note(open_study, best, winner)
    if open_study.config.champion.promote:
        verdict = propose(
            open_study.config, winner.model_uri, None, open_study.tracker.uri, open_study.materials.device
        )
        open_study.study.set_user_attr(VERDICT, asdict(verdict))
        terminal.say(describe_verdict(verdict))
    open_study.tracker.finish(open_study.parent_run, "complete")
    open_study.tracker.flush()
    if open_study.study.user_attrs.get(WINNER) != earlier:
        note_end(open_study, end, time.monotonic() - began)
    terminal.next_steps(disk_lines(open_study.config), next_commands(open_study.config))


def _tell_expected(open_study: OpenStudy, terminal: Terminal, trials: Sequence[FrozenTrial]) -> None:
    """Print and store what the learnt policy expects of more search."""
    planner, budget = open_study.planner, open_study.config.budget
    expected = planner.expected(trials) if planner is not None else None
    if expected is None:
        return
    open_study.study.set_user_attr(EXPECTED, asdict(expected))
    threshold = budget.min_improvement or MIN_IMPROVEMENT
    is_early = expected.gain < threshold and (budget.trials is None or Ledger(open_study.study).counted < budget.trials)
    why = f"; that is less than budget.min_improvement {threshold:g}" if is_early else ""
    terminal.say(f"Search  ended: {expected.sentence}{why}")


def _first_whole(open_study: OpenStudy, best: Sequence[FrozenTrial]) -> FrozenTrial:
    """The best trial that may win.

    Raises:
        NoTrialFinishedError: MLflow has the checkpoint of none.
    """
    # The others' checkpoints were removed.
    for trial in best[: open_study.config.checkpoints.keep]:
        if is_whole(open_study, trial):
            return trial
    queue_lost(open_study, of_everyone=True)
    raise NoTrialFinishedError(
        "MLflow has lost the checkpoints of the best trials; the same command tries these trials again"
    )


def _tag_front(open_study: OpenStudy, front: Sequence[FrozenTrial]) -> None:
    """Tag the runs on the Pareto front, and those on an earlier front that have been beaten since."""
    runs = {trial.user_attrs[RUN_ID] for trial in front}
    for run_id in {*runs, *open_study.study.user_attrs.get(FRONT, ())}:
        if run_id in runs or open_study.tracker.reader.lacks(run_id) != "run":
            open_study.tracker.log(run_id, tags={"unfreeze.pareto": "true" if run_id in runs else "false"})
    # Last: after an interruption the next end of the study tags everything again.
    open_study.study.set_user_attr(FRONT, sorted(runs))
