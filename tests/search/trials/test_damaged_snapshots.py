"""A trial whose snapshot is damaged or does not fit starts from its beginning, in one line."""

from dataclasses import replace
from pathlib import Path

from lab import SMALL, opened

from search.scheduling import Ledger
from search.study.loop import claim
from search.trials import run_trial
from search.trials.snapshots import snapshot_of
from trainers import load_state, save_state


def interrupted(lab, *overrides: str) -> Path:
    """The snapshot of a trial that is stopped after its first epoch, because the hours are over."""
    with opened(lab, *overrides) as open_study:
        ledger = Ledger(open_study.study)
        ((asked, sampled),) = claim(open_study, ledger, 1).items()
        run_trial(replace(open_study, deadline=0.0), ledger, asked, sampled)
        return snapshot_of(open_study, asked.trial.number)


def test_snapshots_that_are_damaged_or_do_not_fit_are_named_and_the_trial_starts_from_its_beginning(new_lab, capsys):
    strategy = SMALL["strategy"] | {"depth": 1.0, "lr": 1e-3, "epochs": 3}
    lab = new_lab(strategy=strategy, budget={"trials": 1, "hours": 1.0, "finish_trials": False})
    damaged = interrupted(lab)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    # The next attempt starts anew, and leaves a snapshot of its own.
    unfit = interrupted(lab)
    said = capsys.readouterr().out
    assert f"trial 1 starts anew, and does not resume trial 0: {damaged} is damaged" in " ".join(said.split())
    state = load_state(unfit)
    state["trainer"].pop("scheduler")
    save_state(state, unfit)

    lab.train()
    said = " ".join(capsys.readouterr().out.split())
    assert f"trial 2 starts anew: {unfit} does not fit: KeyError" in said
    assert lab.outcomes() == ["killed", "killed", "complete"]
    history = lab.client.get_metric_history(lab.runs()[2].info.run_id, "training_seconds")
    assert sorted(metric.step for metric in history) == [1, 2, 3]
    assert not damaged.exists()
