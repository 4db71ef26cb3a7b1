"""Studies with costs beside the metric."""

import pytest
import yaml
from lab import abandoned_trial, dead_owner
from optuna.study import StudyDirection

from search.scheduling import pareto_front
from search.storage import RUN_ID, WINNER, score_of
from search.tracking import CHECKPOINT_FILE

SPACE = {"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-4, "high": 1e-1, "log": True}, "epochs": 2}
SPACE |= {"batch_size": 32}
# Their losses are 2.29, 2.33, hundreds (it diverges) and 2.30.
GOOD, CHEAP, WASTED = {"depth": 1.0, "lr": 1e-2}, {"depth": 0.0, "lr": 1e-1}, {"depth": 1.0, "lr": 1e-1}
BETTER = {"depth": 0.0, "lr": 3e-3}


def costly(new_lab, **changes):
    settings = {"strategy": SPACE, "metric": "loss", "pruner": {}, "costs": ["parameters_trained"], "presets": {}}
    return new_lab(**settings | changes)


@pytest.fixture(scope="module")
def done(new_lab):
    """A study with one cost: a good trial, a cheap one, one that is neither, and then a better cheap one."""
    presets = {"good": GOOD, "cheap": CHEAP, "wasted": WASTED}
    lab = costly(new_lab, presets=presets, checkpoints={"keep": 1})
    assert lab.run("budget.trials=3") == 0
    lab.before = lab.trials(), {n: r.data.tags.get("unfreeze.pareto") for n, r in lab.runs().items()}, lab.checkpoints()
    lab.study.enqueue_trial(BETTER)
    assert lab.run("budget.trials=4") == 0
    return lab


def test_the_optuna_study_has_the_metric_and_each_cost_as_objectives(done):
    assert done.study.directions == [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    for trial in done.trials():
        metrics = done.runs()[trial.number].data.metrics
        assert trial.values == [metrics["score"], metrics["parameters_trained"]]


def test_the_front_is_tagged_and_keeps_its_checkpoints(done):
    trials, tags, checkpoints = done.before
    assert trials[0].values[0] < trials[1].values[0] < trials[2].values[0]
    assert tags == {0: "true", 1: "true", 2: None}
    assert checkpoints == {0, 1}


def test_what_was_on_the_front_and_is_beaten_loses_its_tag_and_checkpoint(done):
    assert [trial.number for trial in pareto_front(done.study)] == [0, 3]
    tags = {number: run.data.tags.get("unfreeze.pareto") for number, run in done.runs().items()}
    assert tags == {0: "true", 1: "false", 2: None, 3: "true"}
    assert done.checkpoints() == {0, 3}


def test_the_winner_is_the_best_by_the_metric(done):
    assert done.study.user_attrs[WINNER]["trial"] == min(done.trials(), key=score_of).number == 0
    assert done.parent().data.metrics["best_score"] == done.trials()[0].values[0]


def test_the_end_shows_the_front_with_its_costs(done, capsys):
    assert done.run("budget.trials=4") == 0
    said = capsys.readouterr().out
    best, front = said.split("Pareto front of validation loss and parameters trained")
    assert "parameters trained" in best
    rows = [line.split() for line in front.splitlines()]
    assert ["trial", "loss", "depth", "lr", "seconds", "parameters", "trained"] in rows
    shown = [(row[0], row[1], row[-1]) for row in rows if row and row[0].isdigit()]
    values = {trial.number: trial.values for trial in done.trials()}
    assert shown == [(str(n), f"{values[n][0]:.4f}", f"{values[n][1]:,.0f}") for n in (0, 3)]
    assert "Which layers? That cannot be told" in said
    assert "Which fields mattered" in said


def test_seconds_are_those_of_training_and_come_before_parameters(new_lab, capsys):
    lab = costly(new_lab, costs=["parameters_trained", "seconds"])
    assert lab.run("budget.trials=2") == 0
    for trial in lab.trials():
        metrics = lab.runs()[trial.number].data.metrics
        assert trial.values == [metrics["score"], metrics["training_seconds"], metrics["parameters_trained"]]
        assert 0 < metrics["training_seconds"] < metrics["seconds"] <= trial.duration.total_seconds()
    assert "Pareto front of validation loss and seconds and parameters trained" in capsys.readouterr().out
    lab.train("budget.trials=2", "costs=[seconds, parameters_trained]")


@pytest.fixture(scope="module")
def plain(new_lab):
    """A study without costs."""
    lab = costly(new_lab, costs=[])
    lab.train("budget.trials=1")
    return lab


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("done", ["costs=[seconds]"], "costs: ['parameters_trained'] -> ['seconds']"),
        ("done", ["costs=[]"], "minimize its metric and minimize 1 of its costs, and now is to minimize its metric;"),
        ("done", ["metric=accuracy"], "minimize its metric and minimize 1 of its costs, and now is to maximize its"),
        ("plain", ["costs=[seconds]"], "searched to minimize its metric, and now is to minimize its metric and minim"),
    ],
)
def test_a_study_with_other_objectives_is_refused(request, capsys, name, overrides, message):
    lab = request.getfixturevalue(name)
    before = lab.trials()
    capsys.readouterr()
    assert lab.run("budget.trials=9", *overrides) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "name=lab-2" in said
    assert lab.trials() == before


def test_a_study_without_costs_has_no_front_and_logs_them_all_the_same(plain, capsys):
    assert plain.run("budget.trials=1") == 0
    assert "Pareto" not in capsys.readouterr().out
    run = plain.runs()[0]
    assert run.data.metrics.keys() >= {"seconds", "parameters_trained"}
    assert "unfreeze.pareto" not in run.data.tags


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruner.name=hyperband"], "pruner.name: 'hyperband' cannot stop trials of a study with costs"),
        (["sampler.name=cmaes"], "sampler.name: 'cmaes' cannot search with costs"),
    ],
)
def test_what_optuna_cannot_do_with_costs_is_refused_by_name(done, capsys, overrides, message):
    assert done.run(*overrides) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_pruner_that_nobody_chose_is_none(done):
    assert done.config().pruner.name == "none"
    assert yaml.safe_load(done.file.read_text())["pruner"] == {}
    assert done.config("costs=[]").pruner.name == "auto"


def test_a_killed_trial_is_tried_again(new_lab):
    lab = costly(new_lab)
    lab.train("budget.trials=1")
    killed = abandoned_trial(lab.study, dead_owner(), BETTER)
    lab.train("budget.trials=2")
    assert lab.outcomes() == ["complete", "killed", "complete"]
    again = lab.trials()[2]
    assert again.params == BETTER
    assert again.user_attrs["retry_of"] == killed.number


def test_a_beaten_checkpoint_that_was_left_behind_is_removed_at_the_next_start_and_the_front_stays(done):
    checkpoint = done.artifact(done.runs()[0], CHECKPOINT_FILE)
    done.client.log_artifact(done.trials()[1].user_attrs[RUN_ID], str(checkpoint))
    assert done.checkpoints() == {0, 1, 3}
    done.train("budget.trials=4")
    assert done.checkpoints() == {0, 3}
