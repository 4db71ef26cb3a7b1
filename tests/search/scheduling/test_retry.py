"""What a study does about trials whose process went away, on stores put into the state such a process leaves."""

import json
import os
import socket
import threading
import time
from datetime import datetime, timedelta

import optuna
import psutil
import pytest
import sqlalchemy
import torch
from copies import copies
from lab import REPOSITORY, abandoned_trial, dead_owner, is_counted
from optuna.trial import FrozenTrial, TrialState

from search.processes import owner
from search.scheduling import Heartbeat, recover, requeue, requeuing
from search.storage import ATTEMPT, CHECKPOINT, OUTCOME, OWNER, PRESET, REASON, RUN_ID, STRATEGY, open_storage
from search.tracking import PARENT_TAG, Tracker
from search.tracking.checkpoints import Checkpoints

PARAMS = {"depth": 0.5, "lr": 2e-3}


@pytest.fixture
def study(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db", requeuing(lambda: 1))
    return optuna.create_study(study_name="s", storage=storage)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials()]


def test_a_trial_of_an_ended_process_is_killed_and_queued_with_its_parameters(study):
    trial = abandoned_trial(study, dead_owner(), PARAMS, **{PRESET: "mine"})
    assert [t.number for t in recover(study, retries=2)] == [trial.number]
    assert states(study) == ["FAIL", "WAITING"]
    told, again = study.get_trials()
    assert (told.user_attrs[OUTCOME], told.user_attrs[REASON]) == ("killed", "its process ended")
    assert again.system_attrs["fixed_params"] == PARAMS
    assert again.user_attrs == {ATTEMPT: 1, "retry_of": 0, PRESET: "mine"}
    assert recover(study, retries=2) == []


@pytest.mark.parametrize(
    ("attrs", "attempt"),
    [
        ({OUTCOME: "killed", REASON: "its process ended"}, 1),
        ({OUTCOME: "killed", REASON: "interrupted"}, 0),
        ({}, 1),
        ({OUTCOME: "failed", REASON: "its process ended, at attempt 3 of 3"}, None),
        ({ATTEMPT: 2}, None),
    ],
)
def test_a_trial_that_was_told_as_killed_and_not_queued_is_queued_by_the_next_process_once(study, attrs, attempt):
    study.tell(abandoned_trial(study, dead_owner(), PARAMS, **attrs).number, state=TrialState.FAIL)
    expected = [0] if attempt is not None else []
    assert [t.number for t in recover(study, retries=2)] == expected
    assert [t.user_attrs for t in study.get_trials()[1:]] == [
        {ATTEMPT: attempt, "retry_of": number} for number in expected
    ]
    assert recover(study, retries=2) == []


def test_whoever_queues_a_killed_trial_late_finds_that_it_is_queued(study):
    # Who tells one itself takes the lock only then; another process may have had it before.
    told = abandoned_trial(study, dead_owner(), PARAMS, **{OUTCOME: "killed"})
    study.tell(told.number, state=TrialState.FAIL)
    recover(study, retries=2)
    requeue(study, study.get_trials()[0], 1)
    assert states(study) == ["FAIL", "WAITING"]


def test_a_trial_killed_before_it_drew_all_parameters_keeps_those_it_was_queued_with(study):
    study.enqueue_trial(PARAMS)
    study.ask().set_user_attr(OWNER, dead_owner())
    recover(study, retries=2)
    assert study.get_trials()[1].system_attrs["fixed_params"] == PARAMS


def test_a_trial_killed_too_often_fails_with_a_reason_and_is_not_queued(study):
    trial = abandoned_trial(study, dead_owner(), PARAMS, **{ATTEMPT: 2})
    assert [t.number for t in recover(study, retries=2)] == [trial.number]
    assert states(study) == ["FAIL"]
    (told,) = study.get_trials()
    assert (told.user_attrs[OUTCOME], told.user_attrs[REASON]) == ("failed", "its process ended, at attempt 3 of 3")


def test_a_trial_of_a_living_process_is_left_alone(study):
    abandoned_trial(study, owner(), PARAMS)
    assert recover(study, retries=2) == []
    assert states(study) == ["RUNNING"]


def test_a_trial_of_another_host_is_left_alone_whatever_runs_here(study):
    elsewhere = json.loads(dead_owner()) | {"host": "not-" + socket.gethostname()}
    abandoned_trial(study, json.dumps(elsewhere), PARAMS)
    assert recover(study, retries=2) == []
    assert states(study) == ["RUNNING"]


def test_a_trial_of_another_host_is_killed_at_once_when_its_process_is_known_to_have_ended(study):
    elsewhere = json.dumps(json.loads(dead_owner()) | {"host": "not-" + socket.gethostname()})
    trial = abandoned_trial(study, elsewhere, PARAMS)
    abandoned_trial(study, owner(), PARAMS)
    assert [told.number for told in recover(study, retries=2, ended=elsewhere)] == [trial.number]
    assert states(study) == ["FAIL", "RUNNING", "WAITING"]
    assert recover(study, retries=2, ended=elsewhere) == []


def test_a_recycled_process_number_does_not_pass_for_the_owner(study):
    now = json.loads(owner())
    abandoned_trial(study, json.dumps(now | {"started": now["started"] - 3600}), PARAMS)
    assert len(recover(study, retries=2)) == 1


def test_a_killed_process_that_its_parent_has_not_asked_about_counts_as_ended(study):
    script = "import time; from search.processes import owner; print(owner(), flush=True); time.sleep(600)"
    process = copies().start(script, [], REPOSITORY, os.environ)
    written = process.stdout.readline()
    abandoned_trial(study, written, PARAMS)
    assert recover(study, retries=2) == []
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert len(recover(study, retries=2)) == 1
    process.communicate()


def test_a_trial_that_never_names_its_process_is_killed_whatever_the_clock_of_its_host_said(study):
    for hours in (-1, 0, 1):
        began = datetime.now() + timedelta(hours=hours)
        study.add_trial(FrozenTrial(0, TrialState.RUNNING, None, began, None, {}, {}, {}, {}, {}, 0))
    assert sorted(trial.number for trial in recover(study, retries=2)) == [0, 1, 2]
    # They had drawn no parameters, which the retries draw.
    assert states(study) == ["FAIL"] * 3 + ["WAITING"] * 3


def test_a_trial_whose_process_is_about_to_name_itself_is_left_alone(study):
    began = datetime.now() - timedelta(hours=1)
    study.add_trial(FrozenTrial(0, TrialState.RUNNING, None, began, None, {}, {}, {}, {}, {}, 0))
    trial = optuna.trial.Trial(study, study.get_trials()[0]._trial_id)
    naming = threading.Timer(0.5, trial.set_user_attr, [OWNER, owner()])
    naming.start()
    assert recover(study, retries=2) == []
    assert states(study) == ["RUNNING"]
    naming.join()


@pytest.mark.parametrize(("attempt", "expected"), [(0, ["FAIL", "WAITING"]), (1, ["FAIL"])])
def test_a_trial_of_another_host_is_killed_once_its_heart_has_stopped(study, tmp_path, attempt, expected):
    elsewhere = json.loads(owner()) | {"host": "not-" + socket.gethostname()}
    trial = abandoned_trial(study, json.dumps(elsewhere), PARAMS, **{ATTEMPT: attempt})
    with Heartbeat(optuna.trial.Trial(study, trial._trial_id)):
        assert recover(study, retries=1) == []
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/optuna.db")
    with engine.begin() as connection:
        stopped = sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-10 minutes')")
        assert connection.execute(stopped).rowcount == 1
    engine.dispose()
    assert [t.number for t in recover(study, retries=1)] == [0]
    assert states(study) == expected


def leave_running(lab, params=PARAMS, **attrs) -> tuple[FrozenTrial, str]:
    """A trial and its run as a process leaves them that is killed after it saved the checkpoint, before it told."""
    trial = abandoned_trial(lab.study, dead_owner(), params, **attrs)
    tracker = Tracker(lab.mlflow_uri, str(lab.folder / "mlruns" / "artifacts"), "lab", lab.spools)
    run_id = tracker.reader.id_of(
        tracker.start_trial(lab.parent().info.run_id, "killed", {"unfreeze.trial": trial.number})
    )
    live = optuna.trial.Trial(lab.study, trial._trial_id)
    live.set_user_attr(RUN_ID, run_id)
    live.set_user_attr(CHECKPOINT, tracker.checkpoints.save(run_id, {"weight": torch.zeros(2)}))
    tracker.log(run_id, metrics={"score": 1.0})
    tracker.flush()
    lab.client.update_run(lab.parent().info.run_id, status="RUNNING")
    return trial, run_id


def test_killed_between_the_checkpoint_and_tell_the_trial_is_tried_again_and_its_checkpoint_removed(lab, capsys):
    lab.train("budget.trials=1")
    killed, run_id = leave_running(lab)
    assert lab.checkpoints() == {0, killed.number}
    assert lab.run("budget.trials=2") == 0
    assert lab.outcomes() == ["complete", "killed", "complete"]
    assert lab.trials()[2].params == PARAMS
    assert lab.checkpoints() == {0, 2}
    assert lab.statuses() == ["FINISHED", "KILLED", "FINISHED"]
    run = lab.client.get_run(run_id)
    assert run.data.tags["unfreeze.outcome"] == "killed"
    assert run.data.tags[PARENT_TAG] == lab.parent().info.run_id
    assert lab.parent().info.status == "FINISHED"
    assert lab.runs()[2].data.tags["unfreeze.attempt"] == "1"
    assert "trial 1 had been killed; it is tried again" in capsys.readouterr().out


def test_interrupted_right_after_its_checkpoint_was_stored_a_trial_leaves_none_behind(lab, monkeypatch):
    lab.train("budget.trials=1")
    save = Checkpoints.save

    def save_and_interrupt(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        assert lab.run("budget.trials=2") == 130
    assert lab.checkpoints() == {0}
    assert lab.outcomes() == ["complete", "killed", None]
    lab.train("budget.trials=2")
    assert lab.checkpoints() == {0, 2}


def test_killed_while_its_strategy_was_noted_the_study_comes_to_its_end_all_the_same(lab):
    assert lab.run("budget.trials=1") == 0
    abandoned_trial(lab.study, dead_owner(), PARAMS, **{STRATEGY: lab.trials()[0].user_attrs[STRATEGY]})
    assert lab.run("budget.trials=2") == 0
    assert lab.outcomes() == ["complete", "killed", "complete"]


def test_killed_between_tell_and_the_end_of_its_run_the_trial_keeps_its_result_and_checkpoint(lab):
    lab.train()
    before = lab.trials()
    lab.pretend_running(1)
    assert lab.statuses() == ["FINISHED", "RUNNING"]
    lab.train()
    assert lab.trials() == before
    assert lab.statuses() == ["FINISHED", "FINISHED"]
    assert lab.runs()[1].data.tags["unfreeze.outcome"] == "complete"
    assert lab.checkpoints() == {0, 1}


def test_killed_before_a_beaten_checkpoint_was_removed_it_is_removed_at_the_next_start(new_lab):
    lab = new_lab(metric="loss", checkpoints={"keep": 2})
    lab.train()
    assert lab.checkpoints() == {0, 1}
    lab.train("checkpoints.keep=1")
    assert lab.checkpoints() == {min(lab.trials(), key=lambda trial: trial.value).number}


def test_killed_between_the_start_of_the_run_and_the_note_of_it_the_run_is_ended_too(lab):
    lab.train("budget.trials=1")
    tracker = Tracker(lab.mlflow_uri, "", "lab", lab.spools)
    unknown = tracker.reader.id_of(tracker.start_trial(lab.parent().info.run_id, "lost", {"unfreeze.trial": 1}))
    abandoned_trial(lab.study, dead_owner(), PARAMS)
    lab.train("budget.trials=2")
    run = lab.client.get_run(unknown)
    assert (run.info.status, run.data.tags["unfreeze.outcome"]) == ("KILLED", "killed")
    assert lab.outcomes() == ["complete", "killed", "complete"]


def test_retries_exhausted_show_in_both_stores_as_failed_and_count(lab, capsys):
    lab.train("budget.trials=1")
    _, run_id = leave_running(lab, **{ATTEMPT: 2})
    assert lab.run("budget.trials=2") == 0
    assert lab.outcomes() == ["complete", "failed"]
    assert sum(map(is_counted, lab.trials())) == 2
    run = lab.client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["unfreeze.outcome"] == "failed"
    assert run.data.tags["unfreeze.reason"] == "its process ended, at attempt 3 of 3"
    assert lab.checkpoints() == {0}
    said = capsys.readouterr().out
    assert "trial 1 had been killed; it has failed for good" in said
    assert "trial 1 failed: its process ended, at attempt 3 of 3" in said


def test_a_run_of_a_trial_that_still_trains_elsewhere_is_not_ended(lab):
    lab.train("budget.trials=1")
    elsewhere = json.loads(owner()) | {"host": "not-" + socket.gethostname()}
    abandoned_trial(lab.study, json.dumps(elsewhere), PARAMS)
    tracker = Tracker(lab.mlflow_uri, "", "lab", lab.spools)
    run_id = tracker.reader.id_of(tracker.start_trial(lab.parent().info.run_id, "theirs", {"unfreeze.trial": 1}))
    lab.train("budget.trials=1")
    assert lab.client.get_run(run_id).info.status == "RUNNING"
    assert lab.outcomes() == ["complete", None]
