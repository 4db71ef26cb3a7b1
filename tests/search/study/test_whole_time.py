"""The time of a search holds for all that its command does, and ends in an answer."""

import math
import time
from dataclasses import replace
from datetime import datetime

import pytest
from lab import SMALL, opened

from search import compose_study
from search.scheduling import Ledger
from search.storage import END, WINNER
from search.study import run_trials, with_seconds
from search.study.presets import _queue_presets
from search.study.whole_time import FIRST_END, with_deadline
from search.tracking import EpochEnded
from trainers import load_state

# One trial of an epoch, then one that would take minutes.
SHORT_THEN_LONG = {
    "strategy": SMALL["strategy"] | {"depth": 1.0, "epochs": {"choices": [1, 20_000]}},
    "presets": {"short": {"epochs": 1, "lr": 1e-3}, "long": {"epochs": 20_000, "lr": 1e-3}},
    "metric": "loss",
}


def test_a_time_of_day_is_the_next_one_that_comes():
    for hour in (datetime.now().hour, (datetime.now().hour + 3) % 24):
        config = compose_study(["study=quickstart", f"budget.until={hour}:59"])
        hours = with_seconds(config, time.monotonic()).budget.hours
        end = datetime.fromtimestamp(time.time() + hours * 3600)
        assert (end.hour, end.minute, round(end.second / 60)) in {(hour, 59, 0), (hour, 58, 1)}
        # A day on which the clocks change may have an hour more.
        assert 0 <= hours <= 25


def test_training_ends_before_the_time_by_what_the_end_has_taken_on_this_machine(new_lab, capsys):
    lab = new_lab()
    assert lab.run("budget.trials=1", "budget.minutes=30") == 0
    noted = lab.study.user_attrs[END]
    assert noted["seconds"] >= 1
    with opened(lab, "budget.minutes=10") as open_study:
        began = time.monotonic()
        left = began + 600 - with_deadline(open_study, began)[0].deadline
        assert noted["seconds"] <= left < noted["seconds"] + 60
        # Another machine's end says nothing; and a time that is too short for the end leaves some to train.
        open_study.study.set_user_attr(END, {"host": "elsewhere", "seconds": 400})
        assert FIRST_END <= began + 600 - with_deadline(open_study, began)[0].deadline < FIRST_END + 60
        short = open_study.config.budget.model_copy(update={"minutes": 1 / 60})
        hurried = replace(open_study, config=open_study.config.model_copy(update={"budget": short}))
        assert with_deadline(hurried, began)[0].deadline >= began + 0.6
        # In a night the time is that of the search alone.
        assert with_deadline(open_study, None)[0].deadline == pytest.approx(time.monotonic() + 600, abs=30)
    assert "10 min after the start" in capsys.readouterr().out


def test_a_time_that_is_over_before_the_first_trial_still_ends_in_an_answer(new_lab):
    lab = new_lab()
    assert lab.run("budget.minutes=0.0001", "budget.trials=null") == 0
    assert lab.outcomes() == ["complete"]
    assert WINNER in lab.study.user_attrs


def test_a_trial_is_cut_when_the_time_is_over_once_there_is_an_answer(new_lab):
    lab = new_lab(**SHORT_THEN_LONG)

    def hang(event):
        if isinstance(event, EpochEnded) and event.number == 1 and event.result.epoch == 2:
            time.sleep(600)

    with opened(lab, "budget.hours=1") as open_study:
        _queue_presets(open_study)
        began = time.monotonic()
        searching = replace(open_study, deadline=began + 2, listeners=(*open_study.listeners, hang))
        run_trials(searching, Ledger(open_study.study), lambda: True, lambda text: None)
        assert time.monotonic() - began < 60
        # It was cut within an epoch, and resumes after the one before.
        assert load_state(open_study.snapshots / "1.pt")["results"]
    assert lab.outcomes() == ["complete", "killed", None]


def test_a_trial_without_an_answer_before_it_is_trained_to_its_end_unless_trials_are_cut(new_lab):
    lab = new_lab()
    with opened(lab, "budget.hours=1") as open_study:
        late = replace(open_study, deadline=time.monotonic() - 1)
        assert late.cut_at == math.inf
        assert not late.is_out_of_time()
        cutting = late.config.budget.model_copy(update={"finish_trials": False})
        cut = replace(late, config=late.config.model_copy(update={"budget": cutting}))
        assert cut.is_out_of_time()
