"""Trials that report several times an epoch."""

import pytest
from lab import SMALL

SPACE = SMALL["strategy"] | {"epochs": 2, "batch_size": 16}
PRESETS = {"first": {"depth": 0.5, "lr": 1e-3}, "other": {"depth": 0, "lr": 1e-3}, "one more": {"depth": 0, "lr": 3e-3}}


@pytest.fixture(scope="module")
def labs(new_lab):
    found = [
        new_lab(strategy=SPACE, presets=PRESETS, metric="loss", pruner={"name": "none", "reports_per_epoch": reports})
        for reports in (1, 4)
    ]
    for lab in found:
        lab.train("budget.trials=4")
    return found


def test_the_trials_and_their_scores_are_those_of_one_report_an_epoch(labs):
    for one, four in zip(*(lab.trials() for lab in labs), strict=True):
        assert (four.params, four.value) == (one.params, one.value)
        assert list(four.intermediate_values) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert {k: four.intermediate_values[4 * k] for k in (1, 2)} == one.intermediate_values
    assert [run.data.metrics["best_epoch"] for _, run in sorted(labs[0].runs().items())] == [
        run.data.metrics["best_epoch"] for _, run in sorted(labs[1].runs().items())
    ]


def test_mlflow_has_each_report_and_where_in_the_epochs_it_was(labs):
    for number, run in labs[1].runs().items():
        history = {
            name: {metric.step: metric.value for metric in labs[1].client.get_metric_history(run.info.run_id, name)}
            for name in ("val_loss", "epoch", "seconds")
        }
        assert history["val_loss"] == labs[1].trials()[number].intermediate_values
        assert history["epoch"] == {step: step / 4 for step in range(1, 9)}
        assert sorted(history["seconds"].values()) == list(history["seconds"].values())
    assert "epoch" not in labs[0].runs()[0].data.metrics


def test_another_number_of_reports_is_another_study(labs, capsys):
    assert labs[0].run("pruner.reports_per_epoch=4") == 2
    assert "pruner.reports_per_epoch: 1 -> 4" in capsys.readouterr().err
    assert labs[1].run("pruner.reports_per_epoch=1") == 2
    assert "pruner.reports_per_epoch: 4 -> 1" in capsys.readouterr().err


def test_a_trial_is_pruned_within_an_epoch_but_not_within_the_warm_up(new_lab):
    space = {"depth": 1.0, "lr": {"choices": [1e-3, 1.0]}, "epochs": 3, "batch_size": 16}
    pruner = {"name": "median", "startup_trials": 1, "reports_per_epoch": 2}
    for warmup, reports in ((0, [1]), (1, [1, 2])):
        lab = new_lab(
            strategy=space,
            metric="loss",
            presets={"sound": {"lr": 1e-3}, "hopeless": {"lr": 1.0}},
            pruner={**pruner, "warmup_epochs": warmup},
        )
        lab.train("budget.trials=2")
        assert lab.outcomes() == ["complete", "pruned"]
        assert list(lab.trials()[1].intermediate_values) == reports
        assert lab.statuses() == ["FINISHED", "KILLED"]
