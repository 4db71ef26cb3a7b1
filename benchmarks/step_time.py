"""How long the learnt policy takes to choose the next step of a search: ``python -m benchmarks.step_time``.

The trials are made up and in memory. A choice is timed after each further trial, as in a search; the first choice of a
process, which reads all trials and the policy's numbers, is shown beside it. What Optuna's store takes is not in it.
With ``OMP_NUM_THREADS=1`` the processor's time is that of the clock on an idle core, also where others use the machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from search import compose_study
from search.scheduling import Aims, LearnedPolicy, ModelFacts, ModelFeatures, Planner, TaskFeatures, Work
from search.storage import FINGERPRINT, PAUSED, STRATEGY
from strategies import RandomDraws, Space, Strategy, sample

# A ResNet-18 at 224 pixels: multiply-adds of each block.
BLOCKS = (1e8,) * 9
EPOCHS = 20


def planner_of(space: Space) -> Planner:
    """A planner of a study on this space."""
    facts = ModelFacts(ModelFeatures("resnet18", 11.7e6, 1.8e9, 0.7), BLOCKS, space)
    aims = Aims(trials=None, min_improvement=1e-9, seed=0)
    task = TaskFeatures(images=2000, classes=10, image_size=224)
    return Planner(LearnedPolicy(), task, {"resnet18": facts}, Work(2000, 1000, 1e11), dict, aims)


def trial_of(number: int, strategy: Strategy, rng: np.random.Generator) -> FrozenTrial:
    """A trial with a rising curve: every fourth ran to its end, the others are paused."""
    done = EPOCHS if number % 4 == 0 else int(rng.integers(1, EPOCHS))
    scores = rng.uniform(0.5, 0.95) * (1 - 0.7 ** np.arange(1, done + 1))
    attrs: dict[str, Any] = {STRATEGY: strategy.to_dict(), FINGERPRINT: str(number)}
    state = TrialState.COMPLETE if done == EPOCHS else TrialState.PRUNED
    found = create_trial(
        state=state,
        value=float(scores.max()),
        intermediate_values=dict(enumerate(scores.tolist(), start=1)),
        user_attrs=attrs | ({} if done == EPOCHS else {PAUSED: done}),
    )
    found.number = number
    return found


def measure(space: Space, count: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a choice in a study of so many trials, medians."""
    rng = np.random.default_rng(0)
    trials = [trial_of(number, sample(space, RandomDraws(rng)), rng) for number in range(count + repeats)]
    planner = planner_of(space)
    first = _milliseconds(lambda: planner.next(trials[:count], lambda _: True, float("inf")))
    times = [
        _milliseconds(lambda known=trials[: count + more]: planner.next(known, lambda _: True, float("inf")))
        for more in range(1, repeats + 1)
    ]
    clock, processor = (statistics.median(one[of] for one in times) for of in (0, 1))
    return {"trials": count, "first": first[1], "clock": clock, "processor": processor}


def _milliseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of the clock and of the processor."""
    began = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.perf_counter() - began[0]), 1000 * (time.process_time() - began[1])


def show(rows: Sequence[dict[str, float]], space: str) -> None:
    """Print the table."""
    table = Table("trials", title=f"milliseconds to choose the next step, space {space}")
    for column in ("clock", "processor", "processor, first of a process"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (f"{row[name]:.1f}" for name in ("clock", "processor", "first"))
        table.add_row(f"{row['trials']:.0f}", *cells)
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 3000], help="in the study")
    parser.add_argument("--strategy", default="full", help="the space, as in strategy=NAME of a study")
    parser.add_argument("--repeats", type=int, default=20, help="choices, each after a further trial")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    space = compose_study(["study=resnet_cls", f"strategy={options.strategy}", f"strategy.epochs={EPOCHS}"]).space()
    rows = [measure(space, count, options.repeats) for count in options.trials]
    show(rows, options.strategy)
    write_json({"machine": machine(), "space": options.strategy, "steps": rows}, options.json)


if __name__ == "__main__":
    main()
