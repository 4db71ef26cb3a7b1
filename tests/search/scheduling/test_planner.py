"""What the planner asks of the learnt policy, on trials that nothing has trained."""

from collections import Counter

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.scheduling import Aims, ModelFacts, Planner, Work, candidates, strands
from search.scheduling.learned import LearnedPolicy, ModelFeatures, TaskFeatures
from search.storage import CONTINUES, OUTCOME, PAUSED, STRATEGY
from strategies import Strategy, parse_space

SPACE = parse_space({"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-5, "high": 1e-1, "log": True}, "epochs": 10})
WORK = Work(1000, 500, 1e10)


def planner(space=SPACE, presets: dict | None = None, work: Work = WORK, **aims) -> Planner:
    facts = ModelFacts(ModelFeatures("resnet18", 11e6, 1.8e9), (1e8,) * 10, space)
    given = {name: ("resnet18", params) for name, params in (presets or {}).items()}
    task = TaskFeatures(images=1000, classes=10, image_size=64, switch_seconds=0.5)
    settings = {"trials": 10, "min_improvement": 1e-9, "seed": 0} | aims
    return Planner(LearnedPolicy(seed=0), task, {"resnet18": facts}, work, lambda: given, Aims(**settings))


def trial(number: int, scores: list[float], state=TrialState.COMPLETE, lr: float = 1e-3, **attrs):
    """A trial of full fine-tuning."""
    params = {"depth": 1.0, "lr": lr}
    found = create_trial(
        state=state,
        params=params,
        distributions={"depth": FloatDistribution(0, 1), "lr": FloatDistribution(1e-5, 1e-1, log=True)},
        intermediate_values=dict(enumerate(scores, start=1)),
        value=max(scores) if state == TrialState.COMPLETE else None,
        user_attrs={STRATEGY: Strategy(**params, epochs=10).to_dict(), **attrs},
    )
    found.number = number
    return found


def paused(number: int, scores: list[float], **attrs):
    return trial(number, scores, TrialState.PRUNED, **{PAUSED: len(scores), **attrs})


RISING = [0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.84, 0.85, 0.86, 0.86]


def test_a_study_begins_with_a_strategy_of_its_space_and_says_what_it_expects():
    plan = planner().next([], lambda _: False, float("inf"))
    assert plan.resumes is None
    assert plan.params.keys() == {"depth", "lr"}
    assert 1e-5 <= plan.params["lr"] <= 1e-1
    assert plan.predicted["low"] <= plan.predicted["score"] <= plan.predicted["high"]
    assert planner().next([], lambda _: False, float("inf")) == plan


def test_the_best_trial_is_trained_to_its_end_before_the_search_is_over():
    trials = [trial(0, RISING), paused(1, [0.9, 0.95]), paused(2, [0.3, 0.4])]
    plan = planner(trials=3, min_improvement=1.0).next(trials, lambda _: True, float("inf"))
    assert (plan.params, plan.resumes.number) == (None, 1)
    assert plan.predicted["to_the_end"]
    # Its snapshot is gone: nothing is left to do.
    assert planner(trials=3, min_improvement=1.0).next(trials, lambda one: one.number != 1, float("inf")) is None
    done = [*trials, trial(3, [0.9, 0.95, *[0.96] * 8], **{CONTINUES: 1})]
    assert planner(trials=3, min_improvement=1.0).next(done, lambda one: one.number == 2, float("inf")) is None


def test_a_search_whose_paused_trials_have_lost_their_states_has_a_winner_all_the_same():
    trials = [paused(0, [0.5]), paused(1, [0.9])]
    assert planner(trials=2).next(trials, lambda _: False, float("inf")).resumes.number == 1
    assert planner(trials=2).next([*trials, trial(2, RISING)], lambda _: False, float("inf")) is None


def test_the_best_trial_is_finished_while_there_is_time():
    trials = [paused(0, [0.9, 0.95])]
    assert planner(trials=None).next(trials, lambda _: True, seconds_left=-1.0).predicted["to_the_end"]
    running = [trial(0, [0.9], TrialState.RUNNING)]
    assert planner().goes_on(running, 0, lambda _: False, seconds_left=-1.0)


def test_a_strategy_that_has_begun_is_no_candidate_even_where_it_has_no_score_yet():
    space = parse_space({"depth": 1.0, "lr": {"choices": [1e-3, 1e-4]}, "epochs": 10})
    presets = {"mine": {"lr": 1e-3}}
    plans = {planner(space, presets).next([], lambda _: False, float("inf")).params["lr"]}
    for lr in (1e-3, 1e-4):
        running = [trial(0, [], TrialState.RUNNING, lr=lr)]
        plan = planner(space, presets).next(running, lambda _: False, float("inf"))
        plans.add(plan.params["lr"])
        assert plan.params["lr"] != lr
        assert plan.preset == ("mine" if lr == 1e-4 else "")
    assert plans == {1e-3, 1e-4}
    # Nothing is left to try.
    both = [trial(0, RISING), trial(1, RISING, lr=1e-4)]
    assert planner(space, presets).next(both, lambda _: False, float("inf")) is None


def test_a_trial_that_could_not_be_drawn_counts_against_the_budget():
    def failed(number: int):
        found = create_trial(state=TrialState.FAIL, user_attrs={OUTCOME: "failed"})
        found.number = number
        return found

    assert planner(trials=3).next([failed(0), failed(1)], lambda _: False, float("inf")) is not None
    assert planner(trials=3).next([failed(0), failed(1), failed(2)], lambda _: False, float("inf")) is None


def test_a_queued_trial_that_resumes_another_counts_as_running():
    queued = create_trial(state=TrialState.WAITING, user_attrs={CONTINUES: 0})
    queued.number = 1
    known = planner(trials=2)
    assert known.next([paused(0, [0.9])], lambda _: True, float("inf")) is not None
    plan = known.next([paused(0, [0.9]), queued], lambda _: True, float("inf"))
    assert plan.resumes is None


def test_a_trial_is_asked_about_again_after_half_as_many_epochs_as_it_has_had():
    others = [trial(0, RISING), paused(1, [0.7, 0.8, 0.88])]

    def goes_on(epochs: int) -> bool:
        hopeless = trial(2, [0.1] * epochs, TrialState.RUNNING, lr=0.1)
        return planner(trials=3).goes_on([*others, hopeless], 2, lambda _: True, float("inf"))

    assert [epochs for epochs in range(1, 10) if not goes_on(epochs)] == [1, 2, 3, 5, 8]
    # Another process has taken the trial for dead.
    assert planner().goes_on(others, 5, lambda _: True, float("inf"))


def test_a_choice_draws_few_strategies_and_reads_no_trial_twice(monkeypatch):
    calls = Counter()

    def counting(module, name):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: calls.update([name]) or call(*args))

    counting(candidates, "sample")
    counting(strands, "candidate_of")
    rng = np.random.default_rng(0)
    trials = [trial(n, sorted(rng.random(5)), lr=10 ** rng.uniform(-5, -1)) for n in range(400)]
    busy = planner(trials=None)
    busy.next(trials[:399], lambda _: False, float("inf"))
    calls.clear()
    # Each of these takes some 0.15 ms; a choice may take 50 ms.
    assert busy.next(trials, lambda _: False, float("inf")) is not None
    assert calls["sample"] <= 32
    assert calls["candidate_of"] <= 33
    calls.clear()
    busy.goes_on([*trials[:-1], trial(399, [0.1], TrialState.RUNNING)], 399, lambda _: False, float("inf"))
    assert calls["sample"] <= 16


def test_a_preset_that_is_queued_has_a_prediction_too():
    found = planner().foreseen("resnet18", {"depth": 1.0, "lr": 1e-3}, "tried first")
    assert found["low"] <= found["score"] <= found["high"]
    assert found["reason"] == "tried first"


def test_a_trial_pauses_where_others_promise_more():
    trials = [trial(0, RISING), paused(1, [0.7, 0.8, 0.88]), trial(2, [0.1] * 5, TrialState.RUNNING, lr=0.1)]
    assert not planner(trials=3).goes_on(trials, 2, lambda _: True, float("inf"))
    # Without anything else to train it goes on.
    assert planner(trials=3).goes_on(trials, 2, lambda _: False, float("inf"))


def test_a_search_of_epochs_that_are_shorter_than_a_trials_beginning_is_not_over_at_once():
    trials = [trial(number, [0.11] * 10, lr=10.0 ** -(number + 1)) for number in range(4)]
    assert planner(work=Work(10, 10, 1e13)).next(trials, lambda _: False, float("inf")) is not None


def test_more_search_is_expected_to_bring_something():
    assert planner().expected([]) is None
    expected = planner(trials=1).expected([trial(0, RISING)])
    assert expected.gain >= 0
    assert expected.sentence.endswith(f"more minutes are expected to bring {expected.gain:.2g}")


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"augment": "light"}, "more"),
        ({"depth": 1.0}, "more"),
        ({"sam_rho": 0.05}, "more"),
        ({"image_scale": 0.5}, "less"),
        ({"epochs": 20}, "less"),
    ],
)
def test_computed_seconds_follow_what_an_epoch_computes(changes, factor):
    blocks = (1e8,) * 10
    plain = Strategy(depth=0.5, epochs=10).canonical(10)
    changed = Strategy(**{"depth": 0.5, "epochs": 10} | changes).canonical(10)
    one, other = (WORK.epoch_seconds(strategy, blocks) for strategy in (plain, changed))
    assert (other > one) == (factor == "more")


def test_snapshots_of_the_best_paused_trials_are_kept():
    trials = [paused(0, [0.2]), paused(1, [0.9]), trial(2, RISING), paused(3, [0.5])]
    assert planner().most_promising(trials, 2) == {1, 3}
