"""How much sooner a policy of search is as good as a plain search, in a replay of real learning curves.

``python -m benchmarks.policies --table FILE...`` searches each data set of the tables by each policy, which has learnt
from the other data sets only, and compares it with plain searches: random strategies trained to their ends. The clock
is that of the table. ``whole`` is the plain search's wall time / the policy's time until a score as good as the plain
search's best. ``hindsight`` is the time at which the plain search had found its best / the policy's time. The row
``null`` is a second plain search, which goes on with further trials.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any
from zlib import crc32

import numpy as np
import optuna
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import speedup
from benchmarks.machine import machine, write_json
from benchmarks.ours import Variant, ours
from benchmarks.quicktune import quicktune
from benchmarks.replay import Curves, Fit, Limit, Plain, plain_search, read_tables, replay, task_of
from benchmarks.rivals import Asha, Hyperband, Random, Tpe, TpeMedian, unlearnt
from strategies import ConfigError

# Parameters of a small model.
SMALL = 10_000_000
# Policies whose regret is subtracted from all others'.
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all policies share.

    Args:
        tables: Files.
        sets: Names of the data sets that are searched; those of the others are learnt from all the same.
        orders: Plain searches a data set.
        plain: Trials of a plain search, one size or several.
        runs: The most searches of a policy in each data set.
        bound: Wall times of a plain search after which a score is missed.
        one_model: Only the most frequent small model of each data set is searched.
        quicktune: Interpreter of an environment with quicktunetool.
        iterations: Passes that quicktunetool's predictors are fitted for at most.
    """

    tables: tuple[Path, ...]
    sets: tuple[str, ...]
    orders: int
    plain: tuple[int, ...]
    runs: int
    bound: float
    one_model: bool
    quicktune: Path | None
    iterations: int


@dataclass(frozen=True, slots=True)
class Entrant:
    """A policy of the table.

    Args:
        fit: Makes the policy; takes the setting and the most epochs of a strategy.
        runs: The most searches in each data set, if its choices take long; each is compared with several plain ones.
    """

    fit: Callable[[Setting, int], Fit]
    runs: int | None = None


def _plain(policy: type, runs: int | None = None) -> Entrant:
    return Entrant(lambda setting, epochs: unlearnt(policy), runs)


def _quicktune(setting: Setting, epochs: int) -> Fit:
    assert setting.quicktune is not None, "checked on the command line"
    return quicktune(setting.quicktune, epochs, setting.iterations)


def _ours(variant: Variant) -> Entrant:
    return Entrant(lambda setting, epochs: ours(variant), 4)


POLICIES: Mapping[str, Entrant] = {
    "random": _plain(Random),
    "null": _plain(Random),
    "tpe": _plain(Tpe, 10),
    "tpe+median": _plain(TpeMedian, 10),
    "asha": _plain(Asha),
    "hyperband": _plain(Hyperband),
    "quicktune": Entrant(_quicktune, 4),
    OURS: _ours(Variant()),
    "ours, no prior": _ours(Variant(prior="none")),
    "ours, no curves": _ours(Variant(blind=True)),
    "ours, no cost": _ours(Variant(free=True)),
    "ours, negated": _ours(Variant(prior="negated")),
    "ours, permuted": _ours(Variant(permuted=True)),
}


@dataclass(frozen=True, slots=True)
class Searched:
    """What a policy did in one data set.

    Args:
        compared: By trials of the plain searches.
        fitting: Seconds that learning from the other data sets took.
        deciding: Mean seconds that the choice of a step took.
        steps: Mean number of epochs trained.
        begun: Mean number of strategies begun.
    """

    compared: Mapping[int, speedup.Compared]
    fitting: float
    deciding: float
    steps: float
    begun: float


@cache
def _tables(paths: tuple[Path, ...]) -> list[Curves]:
    return read_tables(paths)


def search(setting: Setting, policy: str, data_set: str) -> Searched:
    """Search one data set by one policy, which has learnt from all others."""
    tables = _tables(setting.tables)
    whole = next(curves for curves in tables if curves.data_set == data_set)
    target = whole.only(most_frequent_small(whole)) if setting.one_model else whole
    epochs = max(int(curves.epochs.max()) for curves in tables)
    entrant = POLICIES[policy]
    began = perf_counter()
    start = entrant.fit(setting, epochs)([curves for curves in tables if curves is not whole])
    fitting = perf_counter() - began
    plain = {
        trials: [plain_search(target, trials, order) for order in range(setting.orders)] for trials in setting.plain
    }
    runs = min(setting.orders, setting.runs, entrant.runs or setting.orders)
    traces = []
    for run in range(runs):
        limit = _limit([one for of_size in plain.values() for one in of_size[run::runs]], setting.bound)
        # No policy draws what another draws, nor what a plain search draws.
        seed = int(np.random.SeedSequence([crc32(policy.encode()), run]).generate_state(1)[0])
        traces.append(replay(target, start(task_of(target, epochs), seed), limit))
    return Searched(
        {trials: speedup.compare(target, of_size, traces, setting.bound) for trials, of_size in plain.items()},
        fitting,
        *(float(np.mean([getattr(trace, name) for trace in traces])) for name in ("deciding", "steps", "begun")),
    )


def _limit(plain: Iterable[Plain], bound: float) -> Limit:
    """A search goes on until it can be compared with each of its plain searches."""
    whole = max(one.whole for one in plain)
    return Limit(bound * whole, speedup.PLOTTED[-1] * whole, max(one.best for one in plain))


def most_frequent_small(curves: Curves) -> Sequence[int]:
    """The strategies of the model that the data set has most of, among the models of at most 10 million parameters.

    Raises:
        ConfigError: The table has no models, or none that is small.
    """
    if "model" not in curves.fields.columns:
        raise ConfigError("--one-model takes tables with a column model")
    for model in curves.fields["model"].value_counts().index:
        if parameters_of(str(model)) <= SMALL:
            return np.flatnonzero(curves.fields["model"] == model).tolist()
    raise ConfigError(f"no model of data set {curves.data_set} has at most {SMALL:,} parameters")


@cache
def parameters_of(model: str) -> int:
    """How many parameters a model of timm has."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(one.numel() for one in timm.create_model(model, pretrained=False).parameters())


def search_all(setting: Setting, policies: Sequence[str], processes: int) -> dict[str, list[Searched]]:
    """By policy, what it did in each data set, in the setting's order."""
    jobs = [(policy, data_set) for data_set in setting.sets for policy in policies]
    found = {}
    for job, result in track(_done(setting, jobs, processes), "Replaying", len(jobs), console=Console(stderr=True)):
        found[job] = result
    return {policy: [found[policy, data_set] for data_set in setting.sets] for policy in policies}


def _done(
    setting: Setting, jobs: Sequence[tuple[str, str]], processes: int
) -> Iterator[tuple[tuple[str, str], Searched]]:
    """Jobs with their results as they come."""
    if processes == 1:
        yield from ((job, search(setting, *job)) for job in jobs)
        return
    # Each process is one thread: matrices are small, and all cores are busy.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(processes, get_context("spawn"), _quiet) as pool:
        futures = {pool.submit(search, setting, *job): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def result_of(setting: Setting, searched: Mapping[str, Sequence[Searched]]) -> dict[str, Any]:
    """All figures, as they are written."""
    compared = {
        trials: {policy: [one.compared[trials] for one in of_policy] for policy, of_policy in searched.items()}
        for trials in setting.plain
    }
    return {
        "machine": machine(),
        "sets": setting.sets,
        "orders": setting.orders,
        "bound": setting.bound,
        "one_model": setting.one_model,
        "plain": {
            trials: {policy: speedup.summary(of_policy) for policy, of_policy in of_size.items()}
            for trials, of_size in compared.items()
        },
        "regret_above_ours": {
            trials: {
                policy: speedup.less_regret(of_size[OURS], of_policy)
                for policy, of_policy in of_size.items()
                if OURS in of_size and policy != OURS
            }
            for trials, of_size in compared.items()
        },
        "policies": {
            policy: {
                name: float(np.mean([getattr(one, name) for one in of_policy]))
                for name in ("fitting", "deciding", "steps", "begun")
            }
            for policy, of_policy in searched.items()
        },
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    for trials, found in result["plain"].items():
        for tolerance in speedup.TOLERANCES:
            console.print(speedup.ratio_table(trials, tolerance, found, result["bound"]))
        console.print(speedup.regret_table(trials, found))
    table = Table("policy", title="means over data sets")
    for column in ("fitted in, s", "choice of a step, ms", "epochs", "strategies begun"):
        table.add_column(column, justify="right")
    for policy, means in result["policies"].items():
        cells = (f"{means['fitting']:.1f}", f"{1000 * means['deciding']:.2f}")
        table.add_row(policy, *cells, f"{means['steps']:.0f}", f"{means['begun']:.0f}")
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="Parquet files of learning curves")
    parser.add_argument("--sets", nargs="+", help="data sets that are searched; all by default")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, help="all that are at hand by default")
    parser.add_argument("--orders", type=int, default=40, help="plain searches a data set")
    parser.add_argument("--plain", type=int, nargs="+", default=[16, 48], help="trials of a plain search")
    parser.add_argument("--runs", type=int, default=40, help="the most searches of a policy a data set")
    parser.add_argument("--bound", type=float, default=4.0, help="wall times after which a score is missed")
    parser.add_argument("--one-model", action="store_true", help="only each data set's most frequent small model")
    parser.add_argument("--quicktune", type=Path, metavar="PYTHON", help="of an environment with quicktunetool")
    parser.add_argument("--iterations", type=int, default=10, help="passes of quicktune's fit at most")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--plot", type=Path, help="where to draw regret against time, such as regret.svg")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.orders, options.runs, options.iterations, options.processes, *options.plain) < 1:
        parser.error("--orders, --runs, --iterations, --processes and --plain are at least 1")
    policies = options.policies or [name for name in POLICIES if options.quicktune or name != "quicktune"]
    if "quicktune" in policies and not options.quicktune:
        parser.error("policy quicktune takes --quicktune PYTHON; see benchmarks/README.md")
    _quiet()
    try:
        names = [curves.data_set for curves in _tables(tuple(options.table))]
        if unknown := sorted(set(options.sets or ()) - set(names)):
            parser.error(f"no data set {', '.join(unknown)} in the tables; they have {', '.join(names)}")
        setting = Setting(
            tables=tuple(options.table),
            sets=tuple(options.sets or names),
            orders=options.orders,
            plain=tuple(options.plain),
            runs=options.runs,
            bound=options.bound,
            one_model=options.one_model,
            quicktune=options.quicktune,
            iterations=options.iterations,
        )
        result = result_of(setting, search_all(setting, policies, options.processes))
    except ConfigError as error:
        parser.error(str(error))
    show(result)
    write_json(result, options.json)
    if options.plot is not None:
        speedup.plot(options.plot, result["plain"])


if __name__ == "__main__":
    main()
