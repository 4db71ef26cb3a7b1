"""A study from its configuration to its answer: open or resume, run trials until the budget ends, crown the winner."""

import logging
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import FrozenTrial

from search.champion import VERDICT, describe_verdict, propose
from search.config import StudyConfig
from search.confirming import confirm
from search.crew import run_crew
from search.executors import Executor, executor_of
from search.importance import importances
from search.ledger import Ledger
from search.locks import taking_turns
from search.outcome import MODEL, PRESET, RUN_ID
from search.preparation import prepare
from search.presentation import present
from search.preset_order import each_from_the_last, frozen_in_front
from search.ranking import pareto_front, ranked
from search.settling import recover_trials, settle
from search.stopping import stopped_by_signals
from search.sweep import SWEEP, seeded_presets, sweep_probes
from search.terminal import Terminal
from search.trial import Bench
from search.urls import without_password
from search.winner import crown
from search.working import work
from strategies import (
    Fixed,
    Strategy,
    TrialError,
    project,
)

PRESETS_QUEUED, FRONT = "presets_queued", "pareto_front"

logger = logging.getLogger(__name__)


class NoTrialFinishedError(TrialError):
    """The budget ended and no trial had completed."""


def run_study(config: StudyConfig) -> None:
    """Run or resume a study until its budget is spent, then print the ranking and log the winner as a model.

    Raises:
        UnfreezeError: Something in the configuration, data or weights is wrong; nothing was trained then.
        WriteError: MLflow refuses what is written, or there is no room for what waits while it is away; the running
            trial is tried again when the study goes on.
        AwayError: MLflow is away at the end, so that no winner can be logged.
        NoTrialFinishedError: Every trial failed.
        KeyboardInterrupt: After the running trial was queued again.
    """
    with (
        stopped_by_signals(),
        executor_of(config) as executor,
        Terminal(config.metric, costs=config.costs) as terminal,
    ):
        bench = prepare(config, terminal)
        try:
            with taking_turns(config, "begin", terminal.say):
                recover_trials(bench)
                settle(bench)
                sweep_probes(bench)
                _queue_presets(bench)
            hours = config.budget.hours
            bench = replace(bench, deadline=math.inf if hours is None else time.monotonic() + hours * 3600)
            _run_trials(bench, terminal, executor)
            # Lest two processes that end at once crown two winners.
            with taking_turns(config, "finish", terminal.say), bench.tracker.needed():
                _finish(bench, terminal)
        except Exception:
            bench.tracker.try_to_finish(bench.parent_run, "failed")
            raise
        except (KeyboardInterrupt, SystemExit):
            bench.tracker.try_to_finish(bench.parent_run, "killed")
            raise
        finally:
            bench.tracker.close()


def _queue_presets(bench: Bench) -> None:
    """Queue the presets, moved into the space, as first trials; those queued by an earlier run are not queued again.

    Of several models, they are for the first. Each comes behind those from which it can compute what it has frozen,
    also where nothing is shared, so that the same is tried with and without.
    """
    source = bench.first_source
    space, num_blocks = bench.spaces[source.name], source.num_blocks
    model = {MODEL: source.name} if bench.chooses_model else {}
    queued: dict[str, dict[str, Any]] = dict(bench.study.user_attrs.get(PRESETS_QUEUED, {}))
    presets = {
        name: model | project(Strategy.from_dict(preset), space, num_blocks)
        for name, preset in seeded_presets(bench).items()
    }
    frozen = {name: frozen_in_front(params, space, num_blocks) for name, params in presets.items()}
    # A sweep of probes leaves the outputs of all blocks.
    stored = {num_blocks} if SWEEP in bench.study.user_attrs else ()
    for name in each_from_the_last(frozen, stored):
        params = presets[name]
        if name not in queued and params not in queued.values():
            queued[name] = params
            bench.study.set_user_attr(PRESETS_QUEUED, queued)
            bench.study.enqueue_trial(params, user_attrs={PRESET: name})


def _run_trials(bench: Bench, terminal: Terminal, executor: Executor | None) -> None:
    ledger = Ledger(bench.study)
    terminal.study_started(ledger.counted, bench.config.budget.trials)
    if executor is None:
        work(bench, ledger, lambda: True, terminal.say)
    else:
        run_crew(bench, executor, terminal, ledger)


def _finish(bench: Bench, terminal: Terminal) -> None:
    # A model is logged to the winner's run, which has to have ended by then.
    if bench.tracker.deliver():
        settle(bench)
    trials = bench.study.get_trials(deepcopy=False)
    best = ranked(bench.study)
    if not best:
        terminal.counts(trials)
        raise NoTrialFinishedError("no trial completed, so there is no winner")
    if bench.config.after.wise_ft or bench.config.after.soups:
        terminal.say("Scoring what can be mixed from the best weights, on validation")
    confirmed = confirm(bench, best) if bench.config.confirm.seeds else []
    trial = confirmed[0][0] if confirmed else best[0]
    winner = crown(bench, trial, [one for _, one in confirmed])
    entries = {name: entry for space in bench.spaces.values() for name, entry in space.items()}
    searched = [name for name, entry in entries.items() if not isinstance(entry, Fixed)]
    shares = importances(bench.study)
    # What is always asked first, then what mattered most.
    searched = sorted(searched, key=lambda name: (name not in ("depth", "lr"), -shares.get(name, 0.0)))
    searched = [MODEL, *searched] if bench.chooses_model else searched
    terminal.table(best, searched)
    if bench.config.costs:
        front = pareto_front(bench.study)
        _tag_front(bench, front)
        terminal.front(front, searched)
    terminal.counts(trials)
    terminal.importances(shares)
    terminal.winner(winner, _how_to_look(bench.tracker.uri))
    present(bench, best, winner)
    if bench.config.champion.promote:
        verdict = propose(bench.config, winner.model_uri, None, bench.tracker.uri, bench.device)
        bench.study.set_user_attr(VERDICT, asdict(verdict))
        terminal.say(describe_verdict(verdict))
    bench.tracker.finish(bench.parent_run, "complete")
    bench.tracker.flush()


def _tag_front(bench: Bench, front: Sequence[FrozenTrial]) -> None:
    """Tag the runs on the Pareto front, and those that an earlier front held and that were beaten since."""
    runs = {trial.user_attrs[RUN_ID] for trial in front}
    for run_id in {*runs, *bench.study.user_attrs.get(FRONT, ())}:
        bench.tracker.log(run_id, tags={"unfreeze.pareto": "true" if run_id in runs else "false"})
    # Last, so that a cut before it leaves nothing that the next end would not tag.
    bench.study.set_user_attr(FRONT, sorted(runs))


def _how_to_look(tracking_uri: str) -> str:
    if tracking_uri.startswith(("http://", "https://")):
        return f"open {without_password(tracking_uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_password(tracking_uri))}"
