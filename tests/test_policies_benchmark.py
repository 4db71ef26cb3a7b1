"""The replay of learning curves: its clock, its policies, and that no policy sees what it will be asked about."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pytest

from benchmarks import policies, speedup
from benchmarks.policies import Entrant, main, most_frequent_small
from benchmarks.replay import Curves, Limit, Step, Task, plain_search, read_tables, replay, task_of
from benchmarks.rivals import Asha, Hyperband, Planned, Random, Tpe, TpeMedian

EPOCHS = 9


def curves_of(seed: int, count: int, epochs: int = EPOCHS) -> Curves:
    """Strategies whose final score follows from the field ``lr``; each epoch takes a second."""
    rng = np.random.default_rng(seed)
    lr = rng.uniform(size=count)
    final = 0.9 - (lr - 0.7) ** 2 + rng.normal(0, 0.01, count)
    scores = [score * np.linspace(0.5, 1, epochs) for score in final]
    fields = pd.DataFrame({"lr": lr, "opt": rng.choice(["sgd", "adam"], count), "model": "test_resnet"})
    return Curves(f"set{seed}", 100 + seed, 10, fields, scores, [np.ones(epochs)] * count)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of three data sets of 30 strategies as a file."""
    rows = []
    for seed in range(3):
        curves = curves_of(seed, 30)
        rows.append(curves.fields.assign(data_set=curves.data_set, images=curves.images, classes=curves.classes))
        rows[-1]["accuracy"] = [scores.tolist() for scores in curves.scores]
        rows[-1]["seconds"] = [seconds.tolist() for seconds in curves.seconds]
        rows[-1]["losses"] = rows[-1]["accuracy"]
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    pd.concat(rows).to_parquet(path)
    return path


def searched(curves: Curves, policy: type[Planned], orders: int = 200, bound: float = 4.0) -> dict[str, float]:
    """The median ratios of searches against plain searches of 16 trials, and the share that was missed."""
    plain = [plain_search(curves, 16, order) for order in range(orders)]
    task = task_of(curves, EPOCHS)
    traces = [replay(curves, policy(task, 1000 + order), Limit()) for order in range(orders)]
    found = speedup.summary([speedup.compare(curves, plain, traces, bound)])["tolerance"]["0.0"]
    return {ratio: found[ratio]["median"] for ratio in ("whole", "hindsight")} | {"missed": found["whole"]["missed"]}


def test_a_second_plain_search_is_as_fast_as_the_first():
    curves = curves_of(0, 300, epochs=1)
    found = searched(curves, Random)
    # The second search needs more trials than the first had in half of all cases: 16 of (16 + k) cases go beyond k.
    assert found["whole"] == pytest.approx(1, abs=0.25)
    assert found["hindsight"] == pytest.approx(0.5, abs=0.12)
    # In a fifth of all cases none of four times as many trials is as good.
    assert found["missed"] == pytest.approx(0.2, abs=0.06)


def test_a_policy_that_knows_the_truth_is_faster_and_one_that_knows_the_reverse_misses():
    curves = curves_of(0, 100)

    class Best(Planned):
        def plan(self) -> Iterator[tuple[int, int]]:
            yield from ((int(place), EPOCHS) for place in np.argsort(-curves.best))

    class Worst(Planned):
        def plan(self) -> Iterator[tuple[int, int]]:
            yield from ((int(place), EPOCHS) for place in np.argsort(curves.best))

    assert searched(curves, Best, orders=20)["whole"] >= 16
    worst = searched(curves, Worst, orders=20)
    # What is missed counts as the worst ratio.
    assert worst["missed"] == 1
    assert worst["whole"] == worst["hindsight"] == 0


def test_the_clock_is_the_tables_and_paused_strategies_pay_only_for_further_epochs():
    scores, seconds = [np.array([0.1, 0.5]), np.array([0.3])], [np.array([1.0, 2]), np.array([4.0])]
    curves = Curves("two", 10, 2, pd.DataFrame({"lr": [1, 2]}), scores, seconds)

    class InTurn(Planned):
        def plan(self) -> Iterator[tuple[int, int]]:
            yield from ((0, 1), (1, 2), (0, 2))

    trace = replay(curves, InTurn(task_of(curves, 2), 0))
    assert trace.seconds.tolist() == [1, 5, 7]
    assert trace.scores.tolist() == [0.1, 0.3, 0.5]
    assert (trace.reached(0.2), trace.reached(0.6)) == (5, float("inf"))
    assert (trace.best_at(0.9), trace.best_at(6)) == (-float("inf"), 0.3)
    assert (trace.end, trace.steps, trace.begun) == (7, 3, 2)


def test_a_strategy_that_has_ended_is_not_trained_further():
    class Stuck(Random):
        def choose(self) -> int:
            return 0

    with pytest.raises(ValueError, match="Stuck chose strategy 0 of 5, which cannot go on"):
        replay(curves_of(0, 5), Stuck(task_of(curves_of(0, 5), EPOCHS), 0))


@pytest.mark.parametrize("policy", [Random, Tpe, TpeMedian, Asha, Hyperband])
def test_a_policy_trains_every_strategy_to_its_end_if_it_has_the_time(policy):
    curves = curves_of(1, 20)
    trace = replay(curves, policy(task_of(curves, EPOCHS), 0))
    assert trace.steps == curves.epochs.sum()
    assert trace.scores[-1] == curves.best.max()


def epochs_of(curves: Curves, policy: Planned, steps: int) -> list[tuple[int, int]]:
    """The strategies and epochs that a policy trained."""
    seen = []

    class Noted:
        choose = staticmethod(policy.choose)

        @staticmethod
        def tell(step: Step) -> None:
            seen.append((step.strategy, step.epoch))
            policy.tell(step)

    replay(curves, Noted(), Limit(seconds=steps))
    return seen


def test_asha_promotes_the_best_of_three_and_hyperband_the_best_third_of_a_bracket():
    curves = curves_of(2, 40)
    seen = epochs_of(curves, Asha(task_of(curves, EPOCHS), 0), 5)
    first = [place for place, _ in seen[:3]]
    best = max(first, key=lambda place: curves.best[place])
    assert seen == [(place, 1) for place in first] + [(best, 2), (best, 3)]
    # 9 strategies for 1 epoch, 3 of them up to 3 epochs, 1 of them to the end.
    seen = epochs_of(curves, Hyperband(task_of(curves, EPOCHS), 0), 9 + 3 * 2 + 6)
    begun = [place for place, _ in seen[:9]]
    ranked = sorted(begun, key=lambda place: -curves.best[place])
    assert [epoch for _, epoch in seen[:9]] == [1] * 9
    assert [place for place, _ in seen[9:15]] == [place for place in ranked[:3] for _ in range(2)]
    assert seen[15:] == [(ranked[0], epoch) for epoch in range(4, 10)]


def test_tpe_chooses_good_strategies_of_the_table():
    curves = curves_of(3, 100, epochs=1)
    good = set(np.argsort(-curves.best)[:33].tolist())
    chosen = []
    for seed in range(3):
        seen = [place for place, _ in epochs_of(curves, Tpe(task_of(curves, 1), seed), 40)]
        assert len(set(seen)) == 40
        # The first eight are random.
        chosen += seen[8:]
    # By chance, 32 of these 96 would be of the best third, and more than 44 in one of 1,000 cases.
    assert sum(place in good for place in chosen) > 44


def test_each_policy_learns_from_the_other_data_sets_only(table, monkeypatch, tmp_path, capsys):
    seen = []

    def fit(training: Sequence[Curves]) -> type[Random]:
        learnt = [curves.data_set for curves in training]

        class Spy(Random):
            def __init__(self, task: Task, seed: int) -> None:
                seen.append((learnt, task.images, list(task.fields.columns)))
                super().__init__(task, seed)

        return Spy

    monkeypatch.setattr(policies, "POLICIES", {"spy": Entrant(lambda setting, epochs: fit, 2), **policies.POLICIES})
    result, picture = tmp_path / "found.json", tmp_path / "regret.svg"
    words = [
        "--policies",
        "spy",
        "random",
        "--sets",
        "set0",
        "set2",
        "--plain",
        "8",
        "--orders",
        "6",
        "--processes",
        "1",
    ]
    main(["--table", str(table), *words, "--json", str(result), "--plot", str(picture)])
    # Lists besides the curves, such as losses, are no fields.
    fields = ["lr", "opt", "model"]
    assert seen == [(["set1", "set2"], 100, fields)] * 2 + [(["set0", "set1"], 102, fields)] * 2
    assert "plain searches of 8 trials, tolerance 0.005" in " ".join(capsys.readouterr().out.split())
    found = json.loads(result.read_text())["plain"]["8"]["random"]
    assert len(found["tolerance"]["0.0"]["whole"]["of_sets"]) == 2
    assert found["regret"]["1.0"][0] <= found["regret"]["0.0625"][0] <= 1
    assert "spy" in picture.read_text()


def test_bad_input_is_named(table, tmp_path, capsys):
    pd.DataFrame({"data_set": ["a"], "lr": [1.0]}).to_parquet(tmp_path / "bad.parquet")
    for words, message in (
        (["--table", str(table), "--sets", "other"], "no data set other in the tables; they have set0, set1, set2"),
        (
            ["--table", str(tmp_path / "bad.parquet")],
            "bad.parquet lacks the columns images, classes, accuracy, seconds",
        ),
        (["--table", str(table), "--policies", "quicktune"], "policy quicktune takes --quicktune PYTHON"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in " ".join(capsys.readouterr().err.split())


def test_one_model_is_the_most_frequent_that_is_small(table):
    curves = read_tables([table])[0]
    models = ["resnet50"] * 15 + ["test_resnet"] * 10 + ["test_vit"] * 5
    curves.fields["model"] = models
    assert most_frequent_small(curves) == list(range(15, 25))
