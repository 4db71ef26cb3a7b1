"""What becomes of a space in a study: what cannot be used here, where rates lie, and whom a model learns from."""

import mlflow
import pytest

from search.storage import WINNER

TINY = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "epochs": 1,
    "batch_size": 32,
}


def test_what_means_nothing_here_is_left_out_of_the_space_and_said(new_lab, capsys):
    lab = new_lab(strategy=TINY | {"co_tuning": {"choices": [0, 1]}, "distill_weight": {"low": 0.0, "high": 0.9}})
    lab.train()
    said = capsys.readouterr().out
    assert "Space   without distill_weight: there is no teacher" in said
    assert "Space   without co_tuning: the pretrained weights bring no classifier of their own" in said
    assert all(trial.params.keys() == {"depth", "lr"} for trial in lab.trials())


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("strategy.distill_weight=0.5", "strategy.distill_weight: 0.5 cannot be used: there is no teacher"),
        ("strategy.co_tuning=1", "strategy.co_tuning: 1 cannot be used: the pretrained weights bring no classifier"),
    ],
)
def test_a_plain_value_that_means_nothing_here_is_refused(lab, capsys, override, reason):
    assert lab.run(override) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["teacher=resnet50"], "teacher: 'resnet50' is not a model that MLflow has: models:/... or runs:/..."),
        (["teacher=models:/m-1", "task=regression"], "teacher: task regression cannot learn from one"),
        (["teacher=models:/m-none"], "teacher: models:/m-none"),
        (["centre_lr=true", "strategy.lr=0.1"], "centre_lr: strategy.lr must be a range on a log scale"),
    ],
)
def test_a_teacher_or_a_range_that_is_not_there_is_refused(lab, capsys, overrides, reason):
    assert lab.run(*overrides) == 2
    assert reason in capsys.readouterr().err
    assert lab.all_runs() == []


@pytest.mark.slow
def test_a_plain_value_is_refused_only_if_no_model_can_use_it(new_lab, capsys):
    model = {"name": ["test_resnet", "test_convnext"], "weights": "none"}
    lab = new_lab(strategy=TINY | {"batch_norm": "frozen"}, model=model)
    lab.train()
    said = capsys.readouterr().out
    assert "Space   without batch_norm: test_convnext has no BatchNorm" in said
    lab = new_lab(strategy=TINY | {"distill_weight": 0.5}, model=model)
    assert lab.run() == 2
    assert "strategy.distill_weight: 0.5 cannot be used: there is no teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_learns_from_the_winner_of_another(new_lab, capsys):
    first = new_lab(strategy=TINY | {"lr": 3e-3, "epochs": 4}, budget={"trials": 1})
    assert first.run() == 0
    teacher = first.study.user_attrs[WINNER]["model_uri"]
    strategy = TINY | {"lr": 3e-3, "epochs": 4, "distill_weight": 1.0}
    # The same MLflow store, where the teacher is.
    tracking = {"uri": first.mlflow_uri, "artifacts": str(first.folder / "mlruns" / "artifacts")}
    student = new_lab(strategy=strategy, budget={"trials": 1}, tracking=tracking, teacher=teacher, name="student")
    student.train()
    mlflow.set_tracking_uri(first.mlflow_uri)
    (run,) = [r for r in first.all_runs() if r.data.params.get("distill_weight") == "1.0"]
    assert run.info.status == "FINISHED"
    # The range test learns from the teacher too.
    student.train("name=centred", "centre_lr=true", "strategy.lr={low: 1e-4, high: 1e-2, log: true}")
    other = new_lab(
        data={"image_size": 32, "limit_train": 64, "limit_val": 64, "limit_test": 64},
        model={"name": "test_resnet", "weights": "none", "in_chans": 1},
        strategy=strategy,
        tracking=tracking,
        teacher=teacher,
        name="grey",
    )
    assert other.run() == 2
    assert "is of other channels than the study: 3 against 1" in capsys.readouterr().err
    # No image was read for it.
    assert not (other.folder / "mlruns" / "cache").exists()


@pytest.mark.slow
def test_rates_are_centred_once_a_study(new_lab, capsys):
    lab = new_lab(strategy=TINY, centre_lr=True, budget={"trials": 1})
    lab.train()
    suggested = lab.study.user_attrs["suggested_lr"]
    said = capsys.readouterr().out
    assert "Rates   the range test" in said
    lr = lab.trials()[0].params["lr"]
    if suggested is not None:
        assert suggested / 10 <= lr <= suggested * 10
    lab.study.set_user_attr("suggested_lr", 0.5)
    lab.train("budget.trials=3")
    assert all(0.05 <= trial.params["lr"] <= 5 for trial in lab.trials()[1:])
    assert "the range test suggests 5.0e-01; searched from 5.0e-02 to 5.0e+00" in capsys.readouterr().out
