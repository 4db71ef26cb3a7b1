"""Linear probes that wait in the queue are trained together, and nothing else about them changes."""

import json
import signal

import pytest
from optuna.trial import TrialState

from search.storage import outcome_of, score_of

STRATEGY = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 10.0, "log": True},
    "loss": {"choices": ["cross_entropy", "focal"]},
    "augment": {"choices": ["none", "light"]},
    "epochs": 4,
    "batch_size": 32,
}
PROBES = {
    "slow": {"depth": 0, "lr": 1e-3},
    "fast": {"depth": 0, "lr": 1e-1, "loss": "focal"},
    "too_fast": {"depth": 0, "lr": 10.0},
    "augmented": {"depth": 0, "lr": 1e-2, "augment": "light"},
    "deep": {"depth": 1.0, "lr": 1e-3},
    "behind": {"depth": 0, "lr": 1e-2},
}
TOGETHER = "linear probes trained together"


@pytest.fixture(scope="module")
def labs(new_lab):
    """The same presets with and without sharing."""
    found = {}
    for reuse in ("on", "off"):
        lab = new_lab(strategy=STRATEGY, presets=PROBES, reuse=reuse, checkpoints={"keep": 2}, metric="loss")
        lab.train("budget.trials=6")
        found[reuse] = lab
    return found


def test_those_in_front_of_the_queue_are_trained_together_if_they_can_be(labs):
    shared = {n: TOGETHER in run.data.tags["unfreeze.reuse"] for n, run in labs["on"].runs().items()}
    assert shared == {0: True, 1: True, 2: True, 3: False, 4: False, 5: False}
    assert "one of 3 " in labs["on"].runs()[0].data.tags["unfreeze.reuse"]
    assert not any(TOGETHER in run.data.tags["unfreeze.reuse"] for run in labs["off"].runs().values())


def test_each_scores_as_it_does_alone(labs):
    for one, other in zip(labs["on"].trials(), labs["off"].trials(), strict=True):
        assert one.params == other.params
        assert score_of(one) == pytest.approx(score_of(other), rel=1e-4)
        assert one.intermediate_values == pytest.approx(other.intermediate_values, rel=1e-4)


def test_their_runs_hold_what_other_runs_hold(labs):
    alone, together = labs["off"].runs(), labs["on"].runs()
    for number in range(3):
        one, other = together[number], alone[number]
        assert one.info.status == "FINISHED"
        assert one.data.params == other.data.params
        assert one.data.metrics.keys() == other.data.metrics.keys()
        history = labs["on"].client.get_metric_history(one.info.run_id, "val_loss")
        assert [metric.step for metric in history] == [1, 2, 3, 4]
        manifests = [
            json.loads(lab.artifact(run, "manifest.json").read_text())
            for lab, run in ((labs["on"], one), (labs["off"], other))
        ]
        assert manifests[0] == manifests[1]


def test_only_the_best_keep_their_checkpoints(labs):
    best = sorted(labs["on"].trials(), key=score_of)[:2]
    assert labs["on"].checkpoints() == {trial.number for trial in best}


def test_the_same_strategy_twice_gets_two_seeds(new_lab):
    twin = {"depth": 0, "lr": 1e-2}
    lab = new_lab(strategy=STRATEGY, presets={})
    lab.train("budget.trials=1")
    for _ in range(2):
        lab.study.enqueue_trial({**twin, "loss": "focal", "augment": "none"})
    lab.train("budget.trials=3")
    assert [lab.runs()[n].data.params["seed"] for n in (1, 2)] == ["0", "1"]
    assert score_of(lab.trials()[1]) != score_of(lab.trials()[2])


def test_the_budget_ends_among_them(new_lab):
    presets = {name: {"depth": 0, "lr": lr} for name, lr in (("a", 1e-3), ("b", 1e-2), ("c", 1e-1))}
    lab = new_lab(strategy=STRATEGY, presets=presets)
    lab.train("budget.trials=2")
    assert lab.outcomes() == ["complete", "complete", None]


def test_the_pruner_stops_each_for_itself(new_lab):
    presets = {"good": {"depth": 0, "lr": 1e-3}, "too_fast": {"depth": 0, "lr": 10.0}}
    space = STRATEGY | {"epochs": 12}
    pruner = {"name": "patient", "patience": 2}
    shared, alone = (
        new_lab(strategy=space, presets=presets, pruner=pruner, metric="loss", reuse=reuse) for reuse in ("on", "off")
    )
    for lab in (shared, alone):
        lab.train("budget.trials=2")
    assert "pruned" in shared.outcomes()
    assert shared.outcomes() == alone.outcomes()
    assert [t.last_step for t in shared.trials()] == [t.last_step for t in alone.trials()]


@pytest.mark.slow
def test_interrupted_they_are_all_queued_again_and_finish_in_the_next_run(new_lab):
    presets = {str(k): {"depth": 0, "lr": 1e-3 * 2**k} for k in range(4)}
    lab = new_lab(strategy=STRATEGY | {"epochs": 30}, presets=presets)
    # In their second epoch.
    process = lab.start_and_end(("search.trials.record", "Record", "add", "after", 6), signal.SIGINT, "budget.trials=4")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert [outcome_of(trial) for trial in lab.trials()[:4]] == ["killed"] * 4
    assert "RUNNING" not in lab.statuses()
    waiting = [trial for trial in lab.trials() if trial.state == TrialState.WAITING]
    assert [t.system_attrs["fixed_params"]["lr"] for t in waiting] == [t.params["lr"] for t in lab.trials()[:4]]
    for trial in waiting:
        assert trial.user_attrs["attempt"] == 0
    lab.train("budget.trials=4", "strategy.epochs=4")
    assert lab.outcomes()[4:] == ["complete"] * 4
