"""The best strategies with new seeds, and which of them wins then."""

import math
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from statistics import mean

import pytest
from lab import opened
from optuna.trial import FrozenTrial, create_trial

from search.report import main
from search.reporting.terminal import columns_of
from search.scheduling import ranked
from search.storage import score_of
from search.study import run_study
from search.tracking import WriteError
from search.winner import Winner, bounds_of, confirm, mean_interval, search_deadline
from search.winner.confirmation import confirmed_of

KEYS = ("confirm.seeds=2", "confirm.top=2")


@pytest.fixture(scope="module")
def searched(new_lab):
    lab = new_lab()
    assert lab.run("budget.trials=4", *KEYS) == 0
    return lab


def confirmations(lab):
    return [run for run in lab.all_runs() if run.data.tags.get("unfreeze.kind") == "confirmation"]


def test_the_best_by_their_mean_with_new_seeds_wins(searched):
    best = ranked(searched.study)[:2]
    winner = searched.study.user_attrs["winner"]
    assert {one["trial"] for one in winner["confirmed"]} == {trial.number for trial in best}
    means = [one["mean"] for one in winner["confirmed"]]
    assert means == sorted(means, reverse=True)
    assert winner["trial"] == winner["confirmed"][0]["trial"]
    for one in winner["confirmed"]:
        assert one["searched"] == score_of(searched.trials()[one["trial"]])
        assert one["mean"] == pytest.approx(mean(one["scores"]))
        if len(set(one["scores"])) > 1:
            assert one["low"] < one["mean"] < one["high"]
        else:
            assert (one["low"], one["high"]) == (None, None)


def test_each_is_a_run_of_its_own_with_what_trains_it_again(searched):
    winner = searched.study.user_attrs["winner"]
    found = confirmations(searched)
    assert len(found) == 4
    assert {run.info.status for run in found} == {"FINISHED"}
    by_trial = {one["trial"]: one for one in winner["confirmed"]}
    for run in found:
        of_trial = by_trial[int(run.data.tags["unfreeze.confirms"])]
        assert run.data.metrics["score"] in of_trial["scores"]
        trial = searched.runs()[of_trial["trial"]]
        differing = {name for name in trial.data.params if trial.data.params[name] != run.data.params[name]}
        assert differing == {"seed"}
        assert searched.artifact(run, "strategy.yaml").exists()
    assert len({run.data.params["seed"] for run in found}) == 2


def test_the_note_in_mlflow_shows_them_with_their_intervals(searched):
    confirmed = Winner.from_dict(searched.study.user_attrs["winner"]).confirmed
    note = searched.parent().data.tags["mlflow.note.content"]
    assert "The best with 2 new seeds, by their mean validation accuracy:\n\n| trial | in the search | mean |" in note
    for one in zip(*columns_of(confirmed).values(), strict=True):
        assert f"| {' | '.join(one)} |" in note


def test_they_are_no_trials(searched):
    assert len(searched.trials()) == 4
    assert searched.outcomes() == ["complete"] * 4


def test_the_same_command_trains_nothing_again(searched):
    before = {run.info.run_id for run in confirmations(searched)}
    assert searched.run("budget.trials=4", *KEYS) == 0
    assert {run.info.run_id for run in confirmations(searched)} == before


def test_what_is_not_asked_for_any_more_does_not_decide(searched):
    assert searched.run("budget.trials=4") == 0
    winner = searched.study.user_attrs["winner"]
    assert winner["confirmed"] == []
    assert winner["trial"] == ranked(searched.study)[0].number


def test_a_strategy_that_fails_with_a_new_seed_comes_last(new_lab, capsys):
    lab = new_lab()
    lab.train("budget.trials=3")
    best = ranked(lab.study)
    # As an earlier end left it: the best of the search has failed with the new seed.
    known = {str(trial.number): {"100000": None if place == 0 else 0.1 * place} for place, trial in enumerate(best)}
    lab.study.set_user_attr("confirmations", known)
    with opened(lab, "confirm.seeds=1", "confirm.top=3") as open_study:
        found = confirm(open_study, best)
    assert [trial.number for trial, _ in found] == [best[2].number, best[1].number, best[0].number]
    assert found[-1][1].mean is None
    assert found[0][1].low is None


def test_a_training_that_diverges_is_recorded_with_its_reason(new_lab, capsys):
    lab = new_lab()
    lab.train("budget.trials=1")
    trial = lab.trials()[0]
    diverging = trial.user_attrs["strategy"] | {"depth": 1.0, "lr": 100.0, "optimizer": "sgd", "loss": "mse"}
    trial.user_attrs["strategy"] = diverging
    with opened(lab, "confirm.seeds=1", "confirm.top=1") as open_study:
        ((_, found),) = confirm(open_study, [trial])
    assert found.mean is None
    (run,) = confirmations(lab)
    assert run.info.status == "FAILED"
    assert " nan" in run.data.tags["unfreeze.reason"]


def test_equal_scores_are_no_certainty(new_lab):
    lab = new_lab()
    lab.train("budget.trials=1")
    lab.study.set_user_attr("confirmations", {"0": {"100000": 0.5, "100001": 0.5}})
    with opened(lab, "confirm.seeds=2", "confirm.top=1") as open_study:
        ((_, found),) = confirm(open_study, ranked(lab.study))
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_what_mlflow_refuses_is_no_strategys_failure(new_lab):
    lab = new_lab()
    lab.train("budget.trials=1")
    best, keys = ranked(lab.study), ("confirm.seeds=1", "confirm.top=1")
    with closing(sqlite3.connect(lab.mlflow_uri.removeprefix("sqlite:///"))) as database:
        refusal = "CREATE TRIGGER full BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'no room'); END"
        database.execute(refusal)
        with opened(lab, *keys) as open_study, pytest.raises(WriteError, match="no room"):
            confirm(open_study, best)
        database.execute("DROP TRIGGER full")
    assert "confirmations" not in lab.study.user_attrs
    with opened(lab, *keys) as open_study:
        ((_, found),) = confirm(open_study, best)
    assert found.mean is not None
    assert sorted(run.info.status for run in confirmations(lab)) == ["FINISHED", "KILLED"]


def test_the_search_leaves_them_time_within_its_hours(searched):
    best = ranked(searched.study)
    with opened(searched, "budget.hours=1", "confirm.seeds=5", "confirm.top=2") as open_study:
        took = sum(trial.duration.total_seconds() for trial in best[:2])
        # Two of the five seeds are known.
        assert 0.0 - search_deadline(replace(open_study, deadline=0.0), best) == pytest.approx(3 * took)
    with opened(searched, "budget.hours=1e-5", "confirm.seeds=5", "confirm.top=2") as open_study:
        # At most half of them.
        assert 0.0 - search_deadline(replace(open_study, deadline=0.0), best) == pytest.approx(0.018)
    with opened(searched, "budget.hours=1") as open_study:
        assert search_deadline(replace(open_study, deadline=0.0), best) == 0.0


def test_a_search_by_the_hours_confirms_within_them(new_lab):
    lab = new_lab(budget={"hours": 0.003, "finish_trials": False})
    # As in a night, whose hours are those of trials and confirmation alone.
    run_study(lab.config("confirm.seeds=1", "confirm.top=1"))
    winner = lab.study.user_attrs["winner"]
    assert [one["trial"] for one in winner["confirmed"]] == [winner["trial"]]


def test_only_seeds_count_that_all_had_before_the_hours_were_over(searched, capsys):
    runs = len(searched.all_runs())
    keys = ("budget.hours=1", "budget.finish_trials=false", "confirm.seeds=3", "confirm.top=2")
    best = ranked(searched.study)
    with opened(searched, *keys) as open_study:
        found = confirm(replace(open_study, deadline=time.monotonic()), best)
        assert [len(one.scores) for _, one in found] == [2, 2]
        assert "the best were trained with 2 of 3 new seeds" in capsys.readouterr().out
        assert len(searched.all_runs()) == runs
        known = searched.study.user_attrs["confirmations"]
        searched.study.set_user_attr("confirmations", {})
        assert confirm(replace(open_study, deadline=time.monotonic()), best) == []
        searched.study.set_user_attr("confirmations", known)


def test_a_training_is_given_up_when_the_hours_end(new_lab, capsys):
    lab = new_lab()
    lab.train("budget.trials=1")
    trial = lab.trials()[0]
    trial.user_attrs["strategy"] = trial.user_attrs["strategy"] | {"epochs": 2000}
    keys = ("budget.hours=1", "budget.finish_trials=false", "confirm.seeds=1", "confirm.top=1")
    with opened(lab, *keys) as open_study:
        assert confirm(replace(open_study, deadline=time.monotonic() + 1), [trial]) == []
    (run,) = confirmations(lab)
    assert run.info.status == "KILLED"
    assert "score" not in run.data.metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "stored"),
    [
        (("search.winner.confirmation", "", "_train", "after", 1), 0),
        (("search.winner.confirmation", "", "_train", "before", 2), 1),
        (("search.tracking.tracker", "Tracker", "finish", "before", 1), 1),
    ],
    ids=["before its score is stored", "before the next", "before its run is ended"],
)
def test_what_was_confirmed_before_a_kill_is_kept_and_the_rest_trained_anew(new_lab, place, stored):
    lab = new_lab(budget={"trials": 1})
    keys = ("confirm.seeds=2", "confirm.top=1")
    assert lab.start_and_end(place, signal.SIGKILL, *keys).wait() == -9
    before = lab.study.user_attrs.get("confirmations", {}).get("0", {})
    assert len(before) == stored
    assert lab.run(*keys) == 0
    after = lab.study.user_attrs["confirmations"]["0"]
    assert len(after) == 2
    assert after.items() >= before.items()
    runs = confirmations(lab)
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", *["KILLED"] * (len(runs) - 2)]
    assert lab.study.user_attrs["winner"]["confirmed"][0]["scores"] == list(after.values())
    assert {run.info.status for run in lab.all_runs()} <= {"FINISHED", "KILLED"}


def test_more_than_are_kept_cannot_be_confirmed(new_lab, capsys):
    lab = new_lab(checkpoints={"keep": 2})
    assert lab.run("confirm.seeds=1") == 2
    assert "confirm.top: 3 is more than checkpoints.keep: 2" in capsys.readouterr().err


def test_the_report_shows_by_how_much_the_search_was_too_good(searched, tmp_path):
    assert searched.run("budget.trials=4", *KEYS) == 0
    assert main([str(searched.file), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The best again, with new seeds" in page
    one = searched.study.user_attrs["winner"]["confirmed"][0]
    assert f"the search's own score was off by {one['searched'] - one['mean']:+.4f}" in page


def trial_with(score: float) -> FrozenTrial:
    return create_trial(value=score)


def test_a_strategy_is_compared_with_the_best_of_the_search_seed_by_seed():
    first, second = (0.70, 0.80, 0.90), (0.71, 0.82, 0.91)
    alone = confirmed_of(trial_with(0.95), first, first, (0.0, 1.0))
    found = confirmed_of(trial_with(0.94), second, first, (0.0, 1.0))
    assert alone.difference is None
    assert found.difference == pytest.approx(0.04 / 3)
    # Seed by seed there is less doubt than between both means, whose intervals overlap almost wholly.
    assert found.difference_low < found.difference < found.difference_high < 0.03
    assert alone.low < found.low < alone.high
    assert confirmed_of(trial_with(0.9), second, (0.7, None, 0.9), (0.0, 1.0)).difference is None
    table = columns_of([alone, found])
    assert table["95% interval, paired by seed"] == ["", f"{found.difference_low:+.4f} to {found.difference_high:+.4f}"]
    assert table["95% interval over seeds"][0] == f"{alone.low:.4f} to {alone.high:.4f}"


@pytest.mark.parametrize(
    ("metric", "is_lower_better", "scores", "ends"),
    [
        ("accuracy", False, [0.9, 1.0], (None, 1.0)),
        ("accuracy", False, [0.0, 0.1], (0.0, None)),
        ("loss", True, [0.1, 3.0], (0.0, None)),
        ("spearman", False, [-0.9, 0.9], (-1.0, 1.0)),
        ("r2", False, [-0.9, 0.9], (None, 1.0)),
    ],
)
def test_no_interval_goes_beyond_what_the_metric_can_give(metric, is_lower_better, scores, ends):
    found = mean_interval(scores, bounds_of(metric, is_lower_better))
    plain = mean_interval(scores, (-math.inf, math.inf))
    assert found == tuple(there if end is None else end for end, there in zip(ends, plain, strict=True))
    assert found != plain
