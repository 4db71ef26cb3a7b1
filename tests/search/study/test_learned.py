"""A study that the learnt policy plans: what it tries, what it says, and that an interruption changes nothing."""

import pytest
from lab import is_counted, opened

from search.reporting import Terminal
from search.scheduling.original_order import uninterrupted
from search.storage import CONTINUES, EXPECTED, PREDICTED, PRESET, outcome_of
from search.study.lifecycle import _tell_expected
from search.study.own_studies import own_studies
from search.trials import record

SPACE = {"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-4, "high": 1e-1, "log": True}}
SPACE |= {"batch_norm": {"choices": ["train", "frozen_stats"]}, "epochs": 3, "batch_size": 16}
LEARNED = {"sampler": {"name": "learned"}, "pruner": {"name": "auto"}, "strategy": SPACE}
LEARNED |= {"budget": {"trials": 5, "min_improvement": 1e-9}}


@pytest.fixture(scope="module")
def searched(new_lab):
    """A search to its end, with the report, and with the default presets, all of which are candidates only."""
    lab = new_lab(**LEARNED)
    assert lab.run("~presets") == 0
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
    broken, calls = new_lab(**LEARNED), 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 7):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "stop_if_asked", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                broken.train("~presets")
    broken.train("~presets")
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


def test_given_presets_are_tried_first(new_lab):
    lab = new_lab(**LEARNED, presets={"mine": {"depth": 1.0, "lr": 1e-3}})
    lab.train("budget.trials=2")
    first, *others = [trial for trial in lab.trials() if CONTINUES not in trial.user_attrs]
    assert first.user_attrs[PRESET] == "mine"
    assert [PRESET in trial.user_attrs for trial in others] == [False]


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
