"""A study that the learnt policy plans: what it tries, what it says, and that an interruption changes nothing."""

import time
from dataclasses import replace

import pandas as pd
import pytest
from lab import is_counted, opened

from search.config import DEFAULT_PRESETS
from search.learn import main as learn
from search.reporting import Terminal
from search.scheduling import Ledger, Planner, ranked
from search.scheduling.original_order import uninterrupted
from search.storage import CONTINUES, EXPECTED, PREDICTED, PRESET, outcome_of
from search.study import claim, run_trials
from search.study.lifecycle import _tell_expected
from search.study.own_studies import own_studies
from search.trials import plan, record

SPACE = {"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-4, "high": 1e-1, "log": True}}
SPACE |= {"batch_norm": {"choices": ["train", "frozen_stats"]}, "epochs": 3, "batch_size": 16}
LEARNED = {"sampler": {"name": "learned"}, "pruner": {"name": "auto"}, "strategy": SPACE}
LEARNED |= {"budget": {"trials": 5, "min_improvement": 1e-9}}


@pytest.fixture(scope="module")
def searched(new_lab):
    """A search to its end, with the report, and with the default presets, all of which are candidates only."""
    lab = new_lab(**LEARNED, presets=DEFAULT_PRESETS)
    assert lab.run() == 0
    return lab


def strategies(trials) -> list:
    """All that counts of each trial, in the order of an uninterrupted study."""
    kept = [trial for trial in uninterrupted(trials) if is_counted(trial)]
    reasons = [trial.user_attrs[PREDICTED]["reason"] for trial in kept]
    return [(t.params, outcome_of(t), t.intermediate_values, why) for t, why in zip(kept, reasons, strict=True)]


def test_each_run_says_what_was_predicted_and_why_it_was_chosen(searched):
    runs = searched.runs()
    for trial in searched.trials():
        predicted, run = trial.user_attrs[PREDICTED], runs[trial.number]
        assert run.data.tags["unfreeze.chosen"] == predicted["reason"]
        assert 1 <= len(predicted["reason"].split()) <= 3
        assert run.data.metrics["predicted_score"] == pytest.approx(predicted["score"])
        if "low" in predicted:
            assert predicted["low"] <= predicted["score"] <= predicted["high"]
            assert predicted["seconds"] > 0
    begun = [trial for trial in searched.trials() if CONTINUES not in trial.user_attrs]
    assert len(begun) == 5
    # The default presets are candidates only.
    assert "tried first" not in {trial.user_attrs[PREDICTED]["reason"] for trial in begun}
    assert len({tuple(trial.params.values()) for trial in begun}) == 5


def test_the_best_score_of_all_belongs_to_a_trial_that_ran_to_its_end(searched):
    best = max(max(trial.intermediate_values.values()) for trial in searched.trials())
    whole = [trial for trial in searched.trials() if outcome_of(trial) == "complete"]
    assert max(trial.value for trial in whole) == best
    assert all(max(trial.intermediate_values) == 3 for trial in whole)


def test_the_report_shows_predicted_scores_and_what_more_search_would_bring(searched):
    page = searched.artifact(searched.parent(), "report.html").read_text()
    assert 'id="plot-predictions"' in page
    expected = searched.study.user_attrs[EXPECTED]
    assert expected["gain"] >= 0
    assert "more minutes are expected to bring" in page


def test_an_interrupted_search_has_the_trials_of_the_uninterrupted_one(new_lab, searched):
    broken, calls = new_lab(**LEARNED, presets=DEFAULT_PRESETS), 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 7):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "stop_if_asked", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                broken.train()
    broken.train()
    assert "killed" in broken.outcomes()
    assert strategies(broken.trials()) == strategies(searched.trials())


def test_the_search_ends_when_little_more_is_expected(new_lab, capsys):
    lab = new_lab(**LEARNED | {"budget": {"trials": 40, "min_improvement": 0.9}})
    lab.train()
    assert 4 <= len({trial.number for trial in lab.trials() if CONTINUES not in trial.user_attrs}) < 10
    with opened(lab) as open_study:
        _tell_expected(open_study, Terminal("accuracy"), lab.trials())
    said = capsys.readouterr().out
    assert "Search  ended: " in said
    assert "less than budget.min_improvement 0.9" in said


def test_hours_that_end_with_paused_trials_alone_end_with_a_winner(new_lab, monkeypatch):
    lab = new_lab(**LEARNED)
    with opened(lab, "budget.hours=1") as open_study:
        ledger = Ledger(open_study.study)
        with monkeypatch.context() as patch:
            patch.setattr(Planner, "goes_on", lambda *_: False)
            run_trials(open_study, ledger, lambda: len(ledger.told) < 2, print)
        assert "complete" not in lab.outcomes()
        run_trials(replace(open_study, deadline=time.monotonic()), ledger, lambda: True, print)
    assert lab.outcomes()[2:] == ["complete"]
    assert max(lab.trials()[2].intermediate_values) == 3


def test_given_presets_are_tried_first(new_lab):
    lab = new_lab(**LEARNED, presets={"mine": {"depth": 1.0, "lr": 1e-3}, **DEFAULT_PRESETS})
    lab.train("budget.trials=2")
    first, *others = [trial for trial in lab.trials() if CONTINUES not in trial.user_attrs]
    assert first.user_attrs[PRESET] == "mine"
    assert [trial.user_attrs[PREDICTED]["reason"] == "tried first" for trial in others] == [False]
    assert first.user_attrs[PREDICTED]["reason"] == "tried first"
    assert lab.runs()[0].data.metrics["predicted_score"] == first.user_attrs[PREDICTED]["score"]


def test_two_processes_that_ask_at_once_get_different_strategies(new_lab):
    lab = new_lab(**LEARNED, presets=DEFAULT_PRESETS)
    with opened(lab) as open_study:
        ledger, asked = Ledger(open_study.study), []
        for _ in range(4):
            assert plan(open_study, ledger)
            asked += claim(open_study, ledger, 5)
            open_study.attributes.flush(asked[-1].trial)
    assert len({tuple(one.trial.params.values()) for one in asked}) == 4
    # The policy would begin with the same preset each time.
    named = [one.trial.user_attrs[PRESET] for one in asked if PRESET in one.trial.user_attrs]
    assert len(set(named)) == len(named)


def test_strategies_that_worked_on_similar_images_are_candidates(new_lab, searched):
    best = ranked(searched.study)[0]
    with opened(searched, "name=other") as open_study:
        given = open_study.planner._given
    assert given["lab_1"].params["lr"] == best.params["lr"]
    assert given.keys() == {*DEFAULT_PRESETS, *(name for name in given if name.startswith("lab_"))}


def test_what_the_policy_does_not_know_is_searched_as_before(new_lab, capsys):
    lab = new_lab(**LEARNED, metric="loss")
    lab.train("budget.trials=1")
    assert "Sampler tpe: the learnt policy does not know metric loss" in capsys.readouterr().out
    assert PREDICTED not in lab.trials()[0].user_attrs


def test_earlier_studies_of_the_same_metric_are_told_to_the_policy(searched):
    (told,) = own_studies(searched.storage, "new", "accuracy", 1e10)
    assert (told.task.images, told.task.classes) == (64, 10)
    assert len(told.seen) == 5
    best = max(max(one.scores) for one in told.seen)
    assert best == max(trial.value for trial in searched.trials() if outcome_of(trial) == "complete")
    assert own_studies(searched.storage, "lab", "accuracy", 1e10) == []
    assert own_studies(searched.storage, "new", "macro_f1", 1e10) == []


def test_the_numbers_are_fitted_anew_to_the_studies_of_a_store(searched, tmp_path, capsys):
    table, out = tmp_path / "table.parquet", tmp_path / "prior.safetensors"
    row = {"data_set": "one", "images": 500, "classes": 5, "model": "resnet18", "opt": "adamw", "epochs": 3}
    rows = [row | {"lr": 10**-k, "accuracy": [0.1 * k, 0.2, 0.3], "seconds": [1.0] * 3} for k in range(1, 6)]
    pd.DataFrame(rows).to_parquet(table)
    assert learn(["--table", str(table), "--store", searched.optuna_url, "--out", str(out)]) == 0
    assert "fine-tunings of one, 1 studies: written to" in capsys.readouterr().out
    # Two sets are needed: without the store there is one.
    assert learn(["--table", str(table), "--out", str(out)]) == 2
    assert "at least two data sets" in capsys.readouterr().err
    missing = tmp_path / "missing.db"
    assert learn(["--table", str(table), "--store", f"sqlite:///{missing}", "--out", str(out)]) == 2
    assert "--store: " in capsys.readouterr().err
    assert not missing.exists()
