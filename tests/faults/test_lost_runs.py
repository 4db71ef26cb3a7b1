"""Runs and checkpoints that MLflow loses though Optuna counts their trials: the study still comes to its end."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from lab import SMALL, Lab, is_counted, numbers
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from search.reporting import Terminal
from search.scheduling import Ledger, requeue
from search.storage import FINGERPRINT, RETRY_OF, RUN_ID, SEED, score_of
from search.study import prepare
from search.study.lifecycle import NoTrialFinishedError, _first_whole
from search.tracking import CHECKPOINT_FILE
from search.tracking.sink import Sink
from search.trials import OpenStudy, queue_lost, sampling

STUDY = {"strategy": SMALL["strategy"] | {"depth": 0.5}, "metric": "loss"}


def best_of(lab: Lab) -> FrozenTrial:
    return Ledger(lab.study).ranked[0]


def forget_run(lab: Lab, run: str) -> None:
    """Take a run from MLflow's database, as a power cut does with what was committed last."""
    with closing(sqlite3.connect(lab.folder / "mlruns" / "mlflow.db")) as database:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [run])
        database.commit()


def check_tried_again(lab: Lab, lost: FrozenTrial, trials: int) -> None:
    """The lost trial was tried again, came to the same end, and counts once."""
    (again,) = [trial for trial in lab.trials() if trial.user_attrs.get(RETRY_OF) == lost.number]
    assert (again.params, again.user_attrs[SEED]) == (lost.params, lost.user_attrs[SEED])
    assert score_of(again) == score_of(lost)
    assert Ledger(lab.study).counted == trials
    assert lost.number not in [trial.number for trial in Ledger(lab.study).ranked]
    assert again.number in lab.checkpoints()


def test_a_told_trial_leaves_the_ranking_when_it_is_tried_again():
    study = optuna.create_study(direction="maximize")
    for value in (1.0, 3.0, 2.0):
        trial = study.ask({"lr": FloatDistribution(0.0, 1.0)})
        trial.set_user_attr(FINGERPRINT, "same")
        study.tell(trial, value)
    ledger = Ledger(study)
    assert (numbers(ledger.ranked), ledger.counted, ledger.times_tried("same")) == ([1, 2, 0], 3, 3)
    requeue(study, ledger.ranked[0], 0)
    requeue(study, ledger.ranked[0], 0)
    for found in (ledger, Ledger(study)):
        found.refresh()
        assert (numbers(found.ranked), found.counted, found.times_tried("same")) == ([2, 0], 2, 2)


def test_what_a_trial_has_logged_is_on_the_disk_before_it_is_told_and_its_tell_right_after(new_lab, monkeypatch):
    lab, done, fsync, tell = new_lab(**STUDY), [], os.fsync, optuna.Study.tell

    def noting_fsync(file: int) -> None:
        fsync(file)
        done.append(Path(f"/proc/self/fd/{file}").readlink().name)

    def noting_tell(*arguments: Any, **keys: Any) -> FrozenTrial:
        told = tell(*arguments, **keys)
        done.append("told")
        return told

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(optuna.Study, "tell", noting_tell)
    lab.train("budget.trials=1")
    place = done.index("told")
    assert done[place - 1 : place + 2] == ["mlflow.db-wal", "told", "optuna.db-wal"]
    assert CHECKPOINT_FILE in done[:place]


def test_a_best_trial_that_mlflow_has_lost_is_tried_again(new_lab, capsys):
    lab = new_lab(**STUDY)
    lab.train("budget.trials=2")
    best, second = Ledger(lab.study).ranked
    forget_run(lab, best.user_attrs[RUN_ID])
    capsys.readouterr()
    lab.train("budget.trials=2")
    check_tried_again(lab, best, 2)
    said = f"trial {best.number} is tried again: MLflow has lost its run"
    assert [line for line in capsys.readouterr().out.splitlines() if "again" in line] == [said]
    # And once more, by the other half.
    again = best_of(lab)
    lab.artifact(lab.runs()[again.number], CHECKPOINT_FILE).unlink()
    with opened(lab) as open_study:
        assert _first_whole(open_study, Ledger(lab.study).ranked).number == second.number
        assert queue_lost(open_study) == {again.number}
        assert queue_lost(open_study) == set()
    assert lab.trials()[-1].user_attrs[RETRY_OF] == again.number


def test_a_best_trial_whose_checkpoint_is_damaged_is_tried_again_by_the_next_run(new_lab, capsys):
    lab = new_lab(**STUDY)
    lab.train("budget.trials=1")
    (best,) = lab.trials()
    checkpoint = lab.artifact(lab.runs()[0], CHECKPOINT_FILE)
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    assert lab.run("budget.trials=1") != 0
    said = capsys.readouterr()
    assert "trial 0 is tried again: its checkpoint is damaged" in said.out
    assert "error: the checkpoint of run " in said.err
    lab.train("budget.trials=1")
    check_tried_again(lab, best, 1)


@contextmanager
def opened(lab: Lab) -> Iterator[OpenStudy]:
    with Terminal("loss") as terminal:
        open_study = prepare(lab.config("budget.trials=2"), terminal)
        try:
            yield open_study
        finally:
            open_study.tracker.close()


def train_undelivered(lab: Lab, monkeypatch) -> None:
    """Train while MLflow is away from the first trial on: all that is written waits on disk."""

    def is_away(*_: object, **__: object) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "__call__", is_away)
        lab.train("budget.trials=2")
    assert [is_counted(trial) for trial in lab.trials()] == [True, True]
    assert lab.runs() == {}


def test_trials_whose_writes_were_removed_with_the_cache_are_tried_again(new_lab, monkeypatch, capsys):
    lab = new_lab(**STUDY)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "owner", lambda: json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
        train_undelivered(lab, monkeypatch)
    lost = Ledger(lab.study).ranked
    shutil.rmtree(lab.folder / "mlruns" / "cache")
    # Another host may have these writes; if there is no other winner, the study does not wait for them.
    with opened(lab) as open_study:
        assert queue_lost(open_study) == {0, 1}
        assert f"trial {lost[0].number} is left out: its process has not given MLflow its run yet" in " ".join(
            capsys.readouterr().out.split()
        )
        with pytest.raises(NoTrialFinishedError, match="the same command tries these trials again"):
            _first_whole(open_study, [])
    lab.train("budget.trials=2")
    for trial in lost:
        check_tried_again(lab, trial, 2)
    assert len(lab.trials()) == 4


def damage(lab: Lab, run: str, *kinds: str) -> None:
    """Flip bits in the lines of these kinds of a run's writes that wait."""
    (path,) = lab.spools.glob("*/*/writes.jsonl")
    lines = path.read_text().splitlines()
    for kind in kinds:
        hit = [place for place, line in enumerate(lines) if run in line and f'"kind":"{kind}"' in line]
        assert hit
        for place in hit:
            lines[place] = lines[place].replace('"', "\x02")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_damaged_writes_are_kept_with_their_checkpoints_and_the_study_ends(new_lab, monkeypatch, caplog):
    lab = new_lab(**STUDY)
    train_undelivered(lab, monkeypatch)
    best, second = Ledger(lab.study).ranked
    # Of the best the parameters with the seed, of the second the whole run.
    damage(lab, best.user_attrs[RUN_ID], "upload", "log")
    damage(lab, second.user_attrs[RUN_ID], "begin")
    (waiting,) = lab.spools.glob("*/*/writes.jsonl")
    content = waiting.read_text()
    assert lab.run("budget.trials=2") == 0
    assert len(lab.trials()) == 2
    assert lab.study.user_attrs["winner"]["trial"] == best.number
    assert lab.checkpoints() == {best.number}
    (kept,) = lab.spools.glob("*/damaged-*.jsonl")
    assert kept.read_text() == content
    assert f"not all writes that waited for MLflow can be read; they are kept in {kept}" in caplog.text
    assert len([*lab.spools.glob(f"*/refused-*/{CHECKPOINT_FILE}")]) == 1
