"""A search ends when the best score can hardly be improved."""

import re

import optuna
import pytest

SPACE = {"depth": 0, "lr": {"low": 1e-4, "high": 1e-3, "log": True}, "epochs": 1, "batch_size": 32}
SETTINGS = {"strategy": SPACE, "metric": "loss", "sampler": {"name": "random", "startup_trials": 4}}


@pytest.fixture(scope="module")
def lab(new_lab):
    return new_lab(**SETTINGS)


def ending(said: str) -> str:
    return "".join(re.findall(r"^Search  ends: .*$", said, re.MULTILINE))


def test_it_ends_with_the_number_once_the_startup_trials_are_complete_and_so_does_the_next_start(lab, capsys):
    wanted = ["budget.trials=30", "budget.min_improvement=10"]
    lab.train(*wanted)
    assert lab.outcomes() == ["complete"] * 4
    said = ending(capsys.readouterr().out)
    bound = float(re.search(r"can improve by at most (\S+), less than budget.min_improvement 10$", said).group(1))
    assert 0 < bound < 10
    lab.train(*wanted)
    assert len(lab.trials()) == 4
    assert ending(capsys.readouterr().out) == said
    # A smaller one is not reached yet, and what is queued is tried in any case.
    lab.train("budget.trials=5", f"budget.min_improvement={bound / 1e6:.12f}")
    lab.study.enqueue_trial({"lr": 5e-4})
    lab.train(*wanted)
    assert lab.outcomes() == ["complete"] * 6
    assert lab.trials()[5].params == {"lr": 5e-4}


def test_the_bound_is_that_of_optunas_terminator(lab):
    with pytest.warns(FutureWarning):
        terminator = optuna.terminator.Terminator(
            optuna.terminator.RegretBoundEvaluator(seed=0), optuna.terminator.StaticErrorEvaluator(10.0), 4
        )
    assert terminator.should_terminate(lab.study)
