"""What the planner asks of the learnt policy, on trials that nothing has trained."""

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.scheduling import Aims, ModelFacts, Planner, Work
from search.scheduling.learned import LearnedPolicy, ModelFeatures, TaskFeatures
from search.storage import CONTINUES, PAUSED, STRATEGY
from strategies import Strategy, parse_space

SPACE = parse_space({"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-5, "high": 1e-1, "log": True}, "epochs": 10})
WORK = Work(1000, 500, 1e10)


def planner(**aims) -> Planner:
    facts = ModelFacts(ModelFeatures("resnet18", 11e6, 1.8e9), (1e8,) * 10, SPACE)
    task = TaskFeatures(images=1000, classes=10, image_size=64)
    settings = {"trials": 10, "min_improvement": 1e-9, "seed": 0} | aims
    return Planner(LearnedPolicy(seed=0), task, {"resnet18": facts}, WORK, list, Aims(**settings))


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


def test_the_best_trial_is_finished_while_there_is_time():
    trials = [paused(0, [0.9, 0.95])]
    assert planner(trials=None).next(trials, lambda _: True, seconds_left=-1.0).predicted["to_the_end"]
    running = [trial(0, [0.9], TrialState.RUNNING)]
    assert planner().goes_on(running, 0, lambda _: False, seconds_left=-1.0)


def test_a_trial_pauses_where_others_promise_more():
    trials = [trial(0, RISING), paused(1, [0.7, 0.8, 0.88]), trial(2, [0.1, 0.1, 0.1, 0.1], TrialState.RUNNING, lr=0.1)]
    assert not planner(trials=3).goes_on(trials, 2, lambda _: True, float("inf"))
    # Without anything else to train it goes on.
    assert planner(trials=3).goes_on(trials, 2, lambda _: False, float("inf"))


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
