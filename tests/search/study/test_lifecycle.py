import optuna
from lab import SMALL, scored

from search.storage import PRESET, REASON, WINNER

PRESETS = {"linear_probe": {"depth": 0, "lr": 3e-3}, "all_blocks": {"depth": 1.0, "lr": 1e-3}}
TPE = {"name": "tpe", "startup_trials": 1}
FIXED = {"depth": 0, "lr": 1e-3, "epochs": 1, "batch_size": 32}


def test_presets_come_first_and_once(new_lab, capsys):
    lab = new_lab(presets=PRESETS)
    lab.train("budget.trials=1")
    lab.train("budget.trials=3")
    assert [t.user_attrs.get(PRESET) for t in lab.trials()] == ["linear_probe", "all_blocks", None]
    assert [t.params for t in lab.trials()[:2]] == [{"depth": 0.0, "lr": 3e-3}, {"depth": 1.0, "lr": 1e-3}]
    assert "preset linear_probe" in capsys.readouterr().out


def test_presets_that_the_space_makes_equal_are_tried_once(new_lab):
    lab = new_lab(presets=PRESETS, strategy=SMALL["strategy"] | {"depth": 0, "lr": {"choices": [1e-3]}})
    lab.train("budget.trials=2")
    assert [t.user_attrs.get(PRESET) for t in lab.trials()] == ["linear_probe", None]


def test_a_study_resumed_tries_and_finds_what_one_without_a_break_does(new_lab):
    broken, whole = (new_lab(presets=PRESETS, sampler=TPE, metric="loss") for _ in range(2))
    broken.train("budget.trials=3")
    first = broken.trials()
    broken.train("budget.trials=6")
    whole.train("budget.trials=6")
    assert scored(broken.trials()) == scored(whole.trials())
    assert broken.trials()[:3] == first
    drawn = [tuple(trial.params.values()) for trial in whole.trials()]
    assert len(set(drawn)) == 6


def test_another_seed_tries_other_strategies(new_lab):
    labs = [new_lab(seed=seed) for seed in (0, 1)]
    for lab in labs:
        lab.train("budget.trials=1")
    assert labs[0].trials()[0].params != labs[1].trials()[0].params


def test_a_spent_budget_trains_nothing_more_and_tells_the_same_winner(lab, capsys):
    assert lab.run() == 0
    before = lab.trials()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Winner:", "Model:"))]
    runs = [run.info.run_id for run in lab.all_runs()]
    assert len(said) == 2
    assert lab.run("budget.trials=1") == 0
    assert lab.trials() == before
    assert [run.info.run_id for run in lab.all_runs()] == runs
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Winner:", "Model:"))] == said


def test_the_test_split_is_scored_once_a_winner(new_lab):
    lab = new_lab(metric="loss")
    assert lab.run("budget.trials=1") == 0
    first = lab.parent()
    assert lab.run("budget.trials=1") == 0
    history = lab.client.get_metric_history(lab.parent().info.run_id, "test_loss")
    assert len(history) == 1
    assert lab.parent().data.tags["unfreeze.model_uri"] == first.data.tags["unfreeze.model_uri"]


def test_a_budget_of_hours_ends_the_search(new_lab):
    lab = new_lab(budget={"hours": 1e-4})
    assert lab.run("budget.trials=null") == 0
    assert 1 <= len(lab.trials()) < 20


def test_the_same_strategy_again_is_trained_with_the_next_seed(new_lab):
    lab = new_lab(strategy=FIXED, metric="loss")
    lab.train("budget.trials=3", "seed=7")
    assert [run.data.params["seed"] for _, run in sorted(lab.runs().items())] == ["7", "8", "9"]
    assert len({trial.value for trial in lab.trials()}) == 3


def test_metric_loss_is_minimised(new_lab, capsys):
    lab = new_lab(metric="loss")
    assert lab.run("budget.trials=3") == 0
    assert lab.study.direction == optuna.study.StudyDirection.MINIMIZE
    best = min(lab.trials(), key=lambda trial: trial.value)
    assert lab.study.user_attrs[WINNER]["trial"] == best.number
    assert f"Winner: trial {best.number}, test loss" in capsys.readouterr().out


def test_the_score_of_a_trial_is_that_of_its_best_epoch(new_lab):
    lab = new_lab(metric="loss", strategy=SMALL["strategy"] | {"epochs": 3, "lr": 0.02, "depth": 1.0})
    lab.train("budget.trials=1")
    (trial,) = lab.trials()
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert trial.value == min(trial.intermediate_values.values())


DIVERGING = {"depth": 1.0, "optimizer": "sgd", "loss": "mse", "lr": 100.0, "epochs": 3}


def test_a_trial_whose_loss_is_nan_fails_with_its_reason_and_the_study_goes_on(new_lab, capsys):
    space = DIVERGING | {"lr": {"choices": [100.0, 1e-3]}, "batch_size": 8}
    lab = new_lab(strategy=space, presets={"diverging": DIVERGING, "sound": DIVERGING | {"lr": 1e-3}})
    assert lab.run("budget.trials=2") == 0
    assert lab.outcomes() == ["failed", "complete"]
    assert lab.statuses() == ["FAILED", "FINISHED"]
    run = lab.runs()[0]
    assert run.data.tags["unfreeze.outcome"] == "failed"
    assert run.data.tags["unfreeze.reason"] == lab.trials()[0].user_attrs[REASON]
    assert "loss became nan in epoch 1" in run.data.tags["unfreeze.reason"]
    assert "TrialError" in lab.artifact(run, "traceback.txt").read_text()
    said = capsys.readouterr().out
    assert "trial   0  failed" in said
    assert "Trials: 1 complete, 1 failed" in said


def test_a_study_whose_trials_all_fail_ends_with_1_and_the_reasons(new_lab, capsys):
    lab = new_lab(strategy=DIVERGING | {"batch_size": 8})
    assert lab.run() == 1
    said = capsys.readouterr()
    assert said.err == "error: no trial completed, so there is no winner\n"
    assert said.out.count("training loss became nan") == 4
    assert lab.parent().info.status == "FAILED"
    assert lab.statuses() == ["FAILED", "FAILED"]
    assert lab.checkpoints() == set()


def test_a_pruned_trial_is_killed_in_mlflow_with_a_tag_and_counts(new_lab):
    space = {"depth": 1.0, "lr": {"choices": [1e-3, 1.0]}, "epochs": 3, "batch_size": 32}
    lab = new_lab(
        strategy=space,
        metric="loss",
        presets={"sound": {"lr": 1e-3}, "hopeless": {"lr": 1.0}},
        pruner={"name": "median", "startup_trials": 1, "warmup_epochs": 0},
    )
    lab.train("budget.trials=2")
    assert lab.outcomes() == ["complete", "pruned"]
    assert lab.statuses() == ["FINISHED", "KILLED"]
    assert [run.data.tags["unfreeze.outcome"] for _, run in sorted(lab.runs().items())] == ["complete", "pruned"]
    assert list(lab.trials()[1].intermediate_values) == [1]
    assert lab.runs()[1].data.metrics.keys() >= {"seconds", "parameters_trained"}
    assert lab.checkpoints() == {0}


def test_only_the_best_checkpoints_remain(new_lab):
    lab = new_lab(metric="loss", checkpoints={"keep": 2})
    lab.train("budget.trials=6")
    ranks = sorted(lab.trials(), key=lambda trial: trial.value)
    assert lab.checkpoints() == {trial.number for trial in ranks[:2]}
