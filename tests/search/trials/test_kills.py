"""A study whose process is killed between a trial's last epoch and the end of its run: nothing told is lost."""

import signal

import pytest
from lab import SMALL, is_counted

from search.storage import RUN_ID
from search.tracking import PARENT_TAG

# Where the process is killed, and how many trials it has told by then.
KILLS = {
    "before the study knows its run": (("search.tracking.tracker", "Tracker", "save_view", "before", 1), 0),
    "before the checkpoint": (("search.tracking.checkpoints", "Checkpoints", "save", "before", 2), 1),
    "between two batches": (("mlflow", "MlflowClient", "log_batch", "after", 4), 0),
    "before tell": (("optuna.study", "Study", "tell", "before", 2), 1),
    "after tell": (("optuna.study", "Study", "tell", "after", 2), 2),
    "while the run is ended": (("mlflow", "MlflowClient", "set_terminated", "before", 2), 2),
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kill", KILLS)
def test_what_was_told_is_whole_in_mlflow_and_the_rest_is_tried_again(new_lab, kill):
    where, told = KILLS[kill]
    lab = new_lab(metric="loss", strategy=SMALL["strategy"] | {"epochs": 3}, checkpoints={"keep": 1})
    process = lab.start_and_end(where, signal.SIGKILL, "budget.trials=3")
    assert process.wait() == -9

    before = [trial for trial in lab.trials() if trial.state.is_finished()]
    assert len(before) >= told
    check_runs(lab, before)

    lab.train("budget.trials=3")
    after = lab.trials()
    assert [after[trial.number] for trial in before] == before
    assert sum(map(is_counted, after)) == 3
    check_runs(lab, [trial for trial in after if is_counted(trial)])
    assert {run.info.status for run in lab.all_runs()} <= {"FINISHED", "KILLED"}
    # A trial that is killed before its first result has no run.
    outcomes = {number: run.data.tags["unfreeze.outcome"] for number, run in lab.runs().items()}
    assert outcomes.items() <= dict(enumerate(lab.outcomes())).items()
    best = min((trial for trial in after if is_counted(trial)), key=lambda trial: trial.value)
    assert lab.checkpoints() == {best.number}


def check_runs(lab, trials) -> None:
    """Each trial has its run with its parameters, its epochs and its score."""
    runs = lab.runs()
    for trial in trials:
        run = runs[trial.number]
        assert run.info.run_id == trial.user_attrs[RUN_ID]
        assert run.data.tags[PARENT_TAG] == lab.parent().info.run_id
        assert float(run.data.params["lr"]) == trial.params["lr"]
        losses = lab.client.get_metric_history(run.info.run_id, "val_loss")
        assert {metric.step: metric.value for metric in losses} == trial.intermediate_values
        assert list(trial.intermediate_values) == [1, 2, 3]
        assert run.data.metrics["score"] == trial.value
        assert {"manifest.json", "strategy.yaml"} <= {file.path for file in lab.client.list_artifacts(run.info.run_id)}
