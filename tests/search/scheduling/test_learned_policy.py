"""What the learnt policy chooses, told of trials that nothing has trained."""

import math
from dataclasses import replace

import numpy as np
import pytest

from search.learn import main
from search.scheduling.learned import (
    Candidate,
    EarlierStudy,
    LearnedPolicy,
    ModelFeatures,
    Prior,
    Seen,
    State,
    StrategyFeatures,
    TaskFeatures,
    belief,
    shipped_prior,
    study_model,
)
from search.scheduling.learned.encoding import encode, encode_all
from search.scheduling.learned.prior import SHIPPED
from search.scheduling.learned.trees import Trees

TASK = TaskFeatures(images=2000, classes=10, image_size=64)
MODEL = ModelFeatures("resnet18", 11.7e6, 1.8e9, 0.7)
FLAT, RISING = (0.3, 0.3, 0.3, 0.3), (0.3, 0.45, 0.56, 0.64)


def candidate(lr: float = 1e-3, optimizer: str = "adamw", seconds: float | None = None, **fields) -> Candidate:
    return Candidate(StrategyFeatures(optimizer=optimizer, lr=lr, **fields), MODEL, 20, seconds)


def paused(scores: tuple[float, ...], seconds: float = 1.0, **fields) -> Seen:
    return Seen(candidate(**fields), scores, (seconds,) * len(scores), State.PAUSED)


def unexplored(policy_seen: list[Seen], candidates: list[Candidate], task: TaskFeatures = TASK) -> list:
    """Choices of several seeds that do not explore."""
    choices = [LearnedPolicy(seed=seed).choose(task, policy_seen, candidates) for seed in range(6)]
    return [one for one in choices if one.reason != "exploring"]


def drawn(count: int, seed: int = 0) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [
        candidate(10 ** rng.uniform(-5, -1), trained=float(rng.random()), layer_decay=float(rng.uniform(0.5, 1)))
        for _ in range(count)
    ]


def test_a_rising_curve_is_resumed_before_a_flat_one():
    for flat, rising in ((0, 1), (1, 0)):
        seen = [paused(FLAT), paused(FLAT)]
        seen[rising] = paused(RISING)
        assert {(one.new, one.resumed) for one in unexplored(seen, [])} == {(None, rising)}, flat
    assert {one.reason for one in unexplored(seen, [])} == {"rising curve"}


def test_of_two_equal_curves_the_cheaper_is_resumed():
    seen = [paused(RISING, seconds=30.0), paused(RISING, seconds=1.0)]
    assert {one.resumed for one in unexplored(seen, [])} == {1}
    assert {one.new for one in unexplored([], [candidate(seconds=30.0), candidate(seconds=1.0)])} == {1}


def test_a_learning_rate_far_too_high_is_not_tried_first():
    lrs = [10.0, 3e-4, 30.0]
    choice = LearnedPolicy().choose(TASK, [], [candidate(lr, seconds=1.0) for lr in lrs])
    assert (choice.new, choice.resumed, choice.reason) == (1, None, "best prior")
    assert 0.1 <= choice.low <= choice.score <= choice.high <= 1
    assert choice.seconds == pytest.approx(choice.epochs * 1.0)
    assert choice.total_seconds == pytest.approx(20.0)


def test_what_is_finished_failed_or_running_is_not_resumed():
    states = (State.FINISHED, State.FAILED, State.RUNNING)
    seen = [replace(paused(RISING), state=state) for state in states]
    assert LearnedPolicy().choose(TASK, [*seen, paused(FLAT)], []).resumed == 3
    with pytest.raises(ValueError, match="neither a candidate nor a paused trial"):
        LearnedPolicy().choose(TASK, seen, [])


def test_a_seconds_cost_to_switch_keeps_the_current_trial():
    task = replace(TASK, switch_seconds=100.0)
    seen = [paused(RISING), paused(RISING)]
    for current in (0, 1):
        chosen = {LearnedPolicy(seed=seed).choose(task, seen, [], current=current).resumed for seed in range(6)}
        assert chosen == {current}


def test_missing_fields_and_unbounded_metrics_fall_back():
    bare = Candidate(StrategyFeatures(), ModelFeatures("unknown"), 20)
    task = TaskFeatures(images=500, highest=None)
    seen = [replace(paused(scores), candidate=bare) for scores in ((-9.0, -8.0, -7.5), (-9.0, -6.0, -4.0))]
    assert {one.resumed for one in unexplored(seen, [], task)} == {1}
    choice = LearnedPolicy().choose(task, seen, [bare, replace(bare, own=(0.2, 1.0))])
    assert all(math.isfinite(one) for one in (choice.score, choice.low, choice.high, choice.seconds))


def test_the_same_seed_gives_the_same_choices_in_a_new_policy():
    seen, candidates = [paused(RISING), paused(FLAT, lr=1e-5)], drawn(30)
    old = LearnedPolicy(seed=3)
    for count in (0, 1, 2):
        told = old.choose(TASK, seen[:count], candidates)
        assert told == LearnedPolicy(seed=3).choose(TASK, seen[:count], candidates)


def test_a_prior_that_is_wrong_is_overcome_by_what_the_study_sees():
    prior = shipped_prior()
    wrong = replace(prior, new=replace(prior.new, base=-prior.new.base, value=-prior.new.value))
    # In truth, scores are the higher, the nearer the learning rate is to 3e-4.
    candidates = drawn(60)
    truth = [0.9 - 0.2 * abs(math.log10(one.strategy.lr / 3e-4)) for one in candidates]
    policy, seen, left = LearnedPolicy(wrong, seed=0), [], list(range(60))
    for _ in range(20):
        choice = policy.choose(TASK, [one for _, one in seen], [candidates[place] for place in left])
        assert choice.new is not None
        place = left.pop(choice.new)
        seen.append((place, Seen(candidates[place], (truth[place],), (1.0,), State.FINISHED)))
    best = max(truth[place] for place, _ in seen)
    assert best >= np.quantile(truth, 0.9)


def test_an_earlier_study_of_the_user_changes_what_comes_first():
    candidates = [candidate(lr, seconds=1.0) for lr in (3e-4, 1e-2)]
    # In the user's studies the higher rate was better by far.
    ended = [
        Seen(candidate(lr), (0.9 if lr > 3e-3 else 0.2,), (1.0,), State.FINISHED)
        for lr in (1e-2, 8e-3, 2e-2, 3e-4, 2e-4, 4e-4, 1e-2, 3e-4)
    ]
    assert LearnedPolicy().choose(TASK, [], candidates).new == 0
    assert LearnedPolicy(earlier=[EarlierStudy(TASK, ended)]).choose(TASK, [], candidates).new == 1


def test_less_is_expected_of_little_time_and_of_a_score_near_the_best_possible():
    policy, candidates = LearnedPolicy(), drawn(20)
    low, high = paused((0.3, 0.35)), replace(paused((0.999, 0.9999)), state=State.FINISHED)
    much = policy.expected_gain(TASK, [low], candidates, 1e9)
    assert 0 <= policy.expected_gain(TASK, [low], candidates, 1e-9) < much <= 0.65
    assert policy.expected_gain(TASK, [high], candidates, 1e9) <= 1e-4
    assert policy.expected_gain(TASK, [], candidates, 1e9) == math.inf
    assert policy.expected_gain(TASK, [high], [], 1e9) == 0


def test_while_all_scores_are_guesses_a_trial_is_trained_on_to_its_end():
    guesses = [paused((0.1, 0.11)), paused((0.1, 0.1, 0.11)), paused((0.09,))]
    for count in (1, 2, 3):
        told = LearnedPolicy().choose(TASK, guesses[:count], drawn(20))
        assert told.resumed == min(count - 1, 1)
    # One that has ended no better leaves the choice to the next.
    ended = [replace(one, state=State.FINISHED) for one in guesses]
    assert LearnedPolicy().choose(TASK, ended, drawn(20)).new is not None
    assert LearnedPolicy().choose(TASK, [paused((0.3,)), *guesses], drawn(20)).resumed != 2


def test_of_trials_that_were_screened_a_third_goes_on_whatever_their_curves_promise():
    # By the prior, curves that fall promise nothing.
    falling = [paused((0.5 - 0.02 * k, 0.4 - 0.02 * k), lr=10.0**-k) for k in range(1, 7)]
    told = [LearnedPolicy(seed=seed).choose(TASK, falling, drawn(40)) for seed in range(24)]
    exploring = [one for one in told if one.reason == "exploring"]
    assert exploring
    assert {one.resumed for one in exploring} == {0}
    # Two of six have gone on.
    further = [replace(one, scores=(*one.scores, 0.3), state=State.FINISHED) for one in falling[:2]]
    told = [LearnedPolicy(seed=seed).choose(TASK, [*further, *falling[2:]], drawn(40)) for seed in range(24)]
    assert {one.resumed for one in told if one.reason == "exploring"} == {None}


def test_workers_do_not_begin_with_nearly_the_same():
    candidates = [candidate(lr, seconds=1.0) for lr in (2e-3, 2.1e-3, 2e-4)]
    alone = LearnedPolicy().choose(TASK, [], candidates)
    assert alone.new in (0, 1)
    running = Seen(candidates[0], (), (), State.RUNNING)
    assert LearnedPolicy().choose(TASK, [running], candidates).new == 2


def test_three_thousand_trials_are_hardly_more_work_than_two_hundred(monkeypatch):
    rng = np.random.default_rng(0)
    seen = [Seen(one, tuple(np.sort(rng.random(5)).tolist()), (1.0,) * 5, State.PAUSED) for one in drawn(3000)]
    rows, compared = [], []
    predict, regress = Trees.predict, belief._regress
    monkeypatch.setattr(Trees, "predict", lambda self, of: rows.append(len(of)) or predict(self, of))
    monkeypatch.setattr(belief, "_regress", lambda known, *rest: compared.append(len(known)) or regress(known, *rest))
    policy = LearnedPolicy()
    work = []
    for count in (200, 3000):
        policy.choose(TASK, seen[:count], drawn(128, count))
        rows.clear()
        compared.clear()
        policy.choose(TASK, seen[:count], drawn(128, count + 1))
        work.append(sum(rows))
        assert max(compared) <= 180
    # The prior is asked about the new candidates alone, and the study's own model sees its best and latest trials.
    assert work[1] == work[0]


def test_an_earlier_study_is_read_once_and_its_stopped_trials_count_as_predicted(monkeypatch):
    candidates = [candidate(lr, seconds=1.0) for lr in (3e-4, 1e-2)]
    whole = [Seen(candidate(lr), (0.5,) * 20, (1.0,) * 20, State.FINISHED) for lr in (1e-2, 8e-3, 2e-2, 2e-4, 4e-4)]
    # Stopped after an epoch, at less than the others came to.
    stopped = [Seen(candidate(lr), (0.4,), (1.0,), State.FINISHED) for lr in (3e-4, 3.2e-4, 2.8e-4)]
    encoded = []
    monkeypatch.setattr(study_model, "encode", lambda *of: encoded.append(of) or encode(*of))
    policy = LearnedPolicy(earlier=[EarlierStudy(TASK, [*whole, *stopped])])
    assert policy.choose(TASK, [], candidates).new == 0
    before = len(encoded)
    policy.choose(TASK, [], drawn(5))
    assert (before, len(encoded)) == (10, 15)


def test_the_shipped_numbers_are_small_and_say_what_they_were_fitted_on():
    assert SHIPPED.stat().st_size < 1_000_000
    assert "fine-tunings" in shipped_prior().about


def test_a_command_fits_the_numbers_anew_from_a_table(tmp_path, capsys):
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = []
    for name in ("one", "two"):
        for number in range(60):
            lr = 10 ** rng.uniform(-5, -1)
            top = 0.9 - 0.15 * abs(math.log10(lr / 3e-4))
            curve = [top * (1 - 0.5**epoch) for epoch in range(1, 7)]
            row = {"data_set": name, "images": 500, "classes": 5, "model": "resnet18", "opt": "adamw", "lr": lr}
            rows.append(row | {"strategy": str(number), "epochs": 6, "accuracy": curve, "seconds": [1.0] * 6})
    table, out = tmp_path / "table.parquet", tmp_path / "prior.safetensors"
    pd.DataFrame(rows).to_parquet(table)
    assert main(["--table", str(table), "--out", str(out)]) == 0
    prior = Prior.load(out)
    assert prior.about == "120 fine-tunings of one, two"
    good, bad = (Candidate(StrategyFeatures(optimizer="adamw", lr=lr), MODEL, 6) for lr in (3e-4, 9e-2))
    vectors = encode_all([good, bad], TaskFeatures(500, 5))
    scores, _ = prior.new_scores(vectors, [6, 6])
    assert scores[0, -1] > scores[1, -1] + 1
    assert np.exp(prior.epoch_seconds(vectors, 500)) == pytest.approx([1.0, 1.0], rel=0.1)
    pd.DataFrame(rows[:60]).to_parquet(table)
    assert main(["--table", str(table), "--out", str(out)]) == 2
    assert "at least two data sets" in capsys.readouterr().err
