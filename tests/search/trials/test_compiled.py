"""The key ``compile``, from the command line to the run's tag."""

import pytest
from lab import scored

STRATEGY = {"depth": 1, "optimizer": "sgd", "lr": {"low": 1e-3, "high": 1e-2, "log": True}}
STRATEGY |= {"epochs": 1, "batch_size": 32}


@pytest.mark.slow
def test_a_compiled_search_scores_as_another_and_says_in_each_run_what_was_compiled(new_lab):
    # All but the last block is read from the cache, so that there is little to compile.
    plain, compiled = new_lab(strategy=STRATEGY, reuse="on"), new_lab(strategy=STRATEGY, reuse="on")
    plain.train("metric=loss")
    assert compiled.run("metric=loss", "compile=default") == 0
    for (params, score), (its_params, its_score) in zip(scored(compiled.trials()), scored(plain.trials()), strict=True):
        assert params == pytest.approx(its_params)
        assert score == pytest.approx(its_score, rel=1e-4)
    assert [run.data.tags["unfreeze.compile"] for run in compiled.runs().values()] == ["compile: default"] * 2
    assert not any("unfreeze.compile" in run.data.tags for run in plain.runs().values())


def test_a_run_says_why_it_was_not_compiled(new_lab):
    lab = new_lab(strategy=STRATEGY | {"stochastic_norm": 0.5}, budget={"trials": 1})
    assert lab.run("compile=default") == 0
    (run,) = lab.runs().values()
    assert run.data.tags["unfreeze.compile"] == "no compile: the gradients of stochastic_norm would be wrong"
