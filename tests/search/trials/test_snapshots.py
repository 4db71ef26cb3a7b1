"""A trial that was killed goes on from its last state, and comes to what it would have come to."""

import signal

import pytest
from lab import SMALL

from search.storage import RETRY_OF

EPOCHS = 8
# Some epochs after the first, which leaves a snapshot.
IN_TRAINING = ("search.trials.record", "Record", "add", "after", 5)
ONE = {
    "strategy": SMALL["strategy"] | {"depth": 1.0, "lr": 1e-3, "epochs": EPOCHS},
    "metric": "loss",
    "checkpoints": {"every_minutes": 1e-6},
    "budget": {"trials": 1},
}


def losses(lab, number: int) -> list[tuple[int, float]]:
    history = lab.client.get_metric_history(lab.runs()[number].info.run_id, "val_loss")
    return sorted((metric.step, metric.value) for metric in history)


def snapshots(lab) -> list[str]:
    return [path.name for path in (lab.folder / "mlruns" / "cache" / "running").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def plain(new_lab):
    """The same study, and nothing has happened to it."""
    lab = new_lab(**ONE)
    lab.train()
    return lab


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "sigterm"])
def test_a_killed_trial_goes_on_and_scores_as_if_nothing_had_happened(plain, new_lab, capsys, number):
    lab = new_lab(**ONE)
    lab.start_and_end(IN_TRAINING, number).communicate()
    (file,) = (lab.folder / "mlruns" / "cache" / "running").rglob("0.pt")
    # As of a process that is killed while it writes the next.
    file.with_suffix(".part").write_bytes(b"half")

    lab.train()
    assert "trial 1 resumes after epoch" in capsys.readouterr().out
    killed, again = lab.trials()
    assert again.user_attrs[RETRY_OF] == killed.number
    assert lab.runs()[1].data.tags["unfreeze.continues"] == "0"
    assert losses(lab, 1) == losses(plain, 0)
    assert again.value == plain.trials()[0].value
    # What it has trained before is not trained again.
    seconds = lab.client.get_metric_history(lab.runs()[1].info.run_id, "training_seconds")
    assert len(seconds) == EPOCHS
    assert snapshots(lab) == []


def test_a_state_of_another_strategy_is_not_taken_up(new_lab, capsys):
    from search.reporting import Terminal
    from search.scheduling import interrupt
    from search.storage import outcome_of
    from search.study import prepare
    from search.trials.snapshots import snapshot_of
    from trainers import save_state

    lab = new_lab(**ONE)
    config = lab.config("strategy.epochs=2")
    with Terminal(config.metric) as terminal:
        open_study = prepare(config, terminal)
        trial = open_study.study.ask()
        interrupt(open_study.study, open_study.study.get_trials(deepcopy=False)[trial.number])
        save_state({"fingerprint": "of another", "seed": 0}, snapshot_of(open_study, trial.number))
    lab.train("strategy.epochs=2")
    assert "resumes after" not in capsys.readouterr().out
    assert [outcome_of(trial) for trial in lab.trials()] == ["killed", "complete"]
    assert snapshots(lab) == []


def test_no_state_is_written_where_none_is_wanted(new_lab):
    lab = new_lab(**ONE)
    lab.train("strategy.epochs=3", "checkpoints.every_minutes=0")
    assert not (lab.folder / "mlruns" / "cache" / "running").exists()
