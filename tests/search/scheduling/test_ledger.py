import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import numbers, study_of
from optuna.trial import TrialState, create_trial

from search.scheduling import Ledger
from search.storage import FINGERPRINT, OUTCOME, outcome_of

LEVELS = st.integers(0, 3).map(float)
TOLD = st.tuples(st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]), LEVELS, LEVELS, st.booleans(), st.sampled_from("abc"))


def test_the_best_by_the_metric_are_kept_and_the_front():
    ledger = Ledger(study_of([0.9, 5], [0.89, 6], [0.8, 5.5], [0.5, 1]))
    assert numbers(ledger.kept(1)) == [0, 3]
    assert numbers(ledger.kept(2)) == [0, 1, 3]
    assert numbers(Ledger(study_of(0.1, 0.2, 0.3, directions=["minimize"])).kept(2)) == [0, 1]


@pytest.mark.parametrize("values", [[0.95, 9], [0.9, 4], [0.1, 0.5], [0.5, 1], [0.85, 5.5], [0.7, 4], [0.5, 1.1]])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_would_be_kept_is_what_is_kept_once_it_is_told(values, count):
    study = study_of([0.9, 5], [0.8, 6], [0.5, 1])
    ledger = Ledger(study)
    foreseen = ledger.would_be_kept(3, values, count)
    study.add_trial(create_trial(values=values))
    ledger.refresh()
    assert foreseen == (3 in numbers(ledger.kept(count)))


@settings(max_examples=40, deadline=None)
@given(told=st.lists(TOLD, max_size=30), batch=st.integers(1, 7))
def test_a_ledger_that_was_refreshed_says_what_a_scan_of_all_trials_says(told, batch):
    study = study_of(directions=["maximize", "minimize"])
    ledger = Ledger(study)
    for place, (state, score, cost, is_killed, fingerprint) in enumerate(told):
        attrs = {FINGERPRINT: fingerprint} | ({} if is_killed else {OUTCOME: "failed"})
        values = [score, cost] if state == "COMPLETE" else None
        study.add_trial(create_trial(state=TrialState[state], values=values, user_attrs=attrs))
        if place % batch == 0:
            ledger.refresh()
    ledger.refresh()
    trials = study.get_trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert numbers(ledger.ranked) == numbers(sorted(complete, key=lambda t: (-t.values[0], t.number)))
    assert set(numbers(ledger.front)) == set(numbers(study.best_trials))
    assert numbers(ledger.front) == [n for n in numbers(ledger.ranked) if n in set(numbers(ledger.front))]
    counted = [trial for trial in trials if outcome_of(trial) != "killed"]
    assert ledger.counted == len(counted)
    for one in "abc":
        assert ledger.times_tried(one) == sum(trial.user_attrs[FINGERPRINT] == one for trial in counted)


def test_trials_are_counted_once_they_are_told():
    study = optuna.create_study()
    study.enqueue_trial({})
    running = study.ask()
    study.enqueue_trial({})
    ledger = Ledger(study)
    assert ledger.counted == 0
    study.tell(running, 1.0)
    ledger.refresh()
    assert (ledger.counted, numbers(ledger.ranked)) == (1, [0])
    study.tell(study.ask(), state=TrialState.FAIL)
    ledger.refresh()
    assert ledger.counted == 1, "a trial without an outcome was killed"


def test_trials_that_another_process_tells_are_seen_in_whatever_order_they_end(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    ours = optuna.create_study(study_name="s", storage=url, direction="maximize")
    theirs = optuna.load_study(study_name="s", storage=url)
    first, second, third = (theirs.ask() for _ in range(3))
    ledger = Ledger(ours)
    theirs.tell(third, 0.5)
    theirs.tell(first, 0.1)
    ledger.refresh()
    assert numbers(ledger.ranked) == [2, 0]
    theirs.tell(second, 0.9)
    ledger.refresh()
    assert numbers(ledger.ranked) == [1, 2, 0]
    assert ledger.counted == 3


def test_a_trial_that_was_taken_counts_as_one_that_was_read(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    ours = optuna.create_study(study_name="s", storage=url, direction="maximize")
    ledger = Ledger(ours)
    ledger.take(ours.tell(ours.ask(), 0.5))
    assert (ledger.counted, numbers(ledger.ranked)) == (1, [0])
    ours.enqueue_trial({})
    ledger.refresh()
    ledger.take(ours.tell(ours.ask(), 0.7))
    assert (ledger.counted, numbers(ledger.ranked)) == (2, [1, 0])


def test_taking_a_trial_notices_what_others_asked_and_told(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    ours = optuna.create_study(study_name="s", storage=url, direction="maximize")
    theirs = optuna.load_study(study_name="s", storage=url)
    ledger = Ledger(ours)
    running = theirs.ask()
    ledger.take(ours.tell(ours.ask(), 0.5))
    assert (ledger.counted, numbers(ledger.ranked)) == (1, [1])
    theirs.tell(running, 0.9)
    ledger.take(ours.tell(ours.ask(), 0.7))
    assert (ledger.counted, numbers(ledger.ranked)) == (3, [0, 2, 1])
