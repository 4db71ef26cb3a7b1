"""Trials of one study or several, side by side: ``python -m search.compare STUDY [STUDY ...]``."""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.imports import importing
from search.run import exit_code
from strategies import ConfigError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from search.known import Known

_USAGE = """\
A study is named as for search.run, or by the name it has in the store; without one, all studies of the store are shown.
Where the stores are, a study file says, or store.url=... and tracking.uri=....

The table shows what differs among the trials; csv and json have every field of their strategies."""

# Fields of strategies that a table has room for.
_MAX_FIELDS = 8


def rows_of(known: "Known", top: int | None, everything: bool = False) -> list[dict[str, Any]]:
    """A study's trials as flat records, the best first.

    Args:
        known: The study.
        top: So many of the completed trials at most; None for all.
        everything: Those that did not complete follow, in the order in which they were tried.
    """
    from search.outcome import outcome_of
    from search.ranking import ranked

    # Each of them is read from the store.
    shared, costs = {"study": known.name, "metric": known.metric}, known.costs
    best = ranked(known.study)
    found = [_row(shared, costs, trial, rank) for rank, trial in enumerate(best[:top], start=1)]
    if everything:
        others = known.study.get_trials(deepcopy=False)
        found += [_row(shared, costs, trial, None) for trial in others if outcome_of(trial) not in (None, "complete")]
    return found


def _row(shared: Mapping[str, str], costs: Sequence[str], trial: "FrozenTrial", rank: int | None) -> dict[str, Any]:
    from search.outcome import DEPTH, MODEL, PRESET, REASON, RUN_ID, SEED, STRATEGY, outcome_of, score_of
    from search.trial import describe
    from strategies import Strategy

    attrs = trial.user_attrs
    # A trial that was killed at once may have drawn nothing, or have noted a part of what it had.
    strategy = dict(attrs[STRATEGY]) if attrs.keys() >= {STRATEGY, DEPTH} else {}
    model = trial.params.get(MODEL)
    label = ""
    if strategy:
        label = describe(Strategy.from_dict({**strategy, "depth": attrs[DEPTH]}), model or "")
    return {
        "study": shared["study"],
        "rank": rank,
        "trial": trial.number,
        "name": label,
        "outcome": outcome_of(trial),
        "metric": shared["metric"],
        "score": score_of(trial),
        **dict(zip(costs, (trial.values or [])[1:], strict=False)),
        "seconds": round(trial.duration.total_seconds(), 3) if trial.duration else None,
        "model": model,
        "depth_blocks": attrs.get(DEPTH),
        **strategy,
        "seed": attrs.get(SEED),
        "preset": attrs.get(PRESET),
        "reason": attrs.get(REASON),
        "run": attrs.get(RUN_ID),
    }


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The records as a JSON list; what is not a number of JSON's, such as infinity, is null."""
    import pandas as pd

    # Through a frame, lest a record that lacks a field lack its key.
    return json.dumps(json.loads(pd.DataFrame(list(rows)).to_json(orient="records")), indent=1, ensure_ascii=False)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The records as CSV with a line of names."""
    import pandas as pd

    return str(pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n"))


def table_of(rows: Sequence[Mapping[str, Any]], searched: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a table: what identifies a trial, its score, and the first searched fields in which trials differ.

    Args:
        rows: Of :func:`rows_of`.
        searched: Fields that were searched, the most telling first.
    """

    def texts(name: str) -> list[str]:
        return [_in_words(row.get(name)) for row in rows]

    differing = [name for name in searched if len(set(texts(name))) > 1][:_MAX_FIELDS]
    metrics = {row["metric"] for row in rows}
    scores = [f"{row['score']:.4f}" if row["score"] is not None else "" for row in rows]
    if len(metrics) > 1:
        scores = [f"{row['metric']} {score}" if score else "" for row, score in zip(rows, scores, strict=True)]
    columns = {"study": texts("study")} if len({row["study"] for row in rows}) > 1 else {}
    columns |= {"rank": texts("rank"), "trial": texts("trial")}
    if any(row["outcome"] != "complete" for row in rows):
        columns["outcome"] = texts("outcome")
    columns[metrics.pop() if len(metrics) == 1 else "score"] = scores
    columns |= {"depth" if name == "depth_blocks" else name: texts(name) for name in differing}
    return columns | {"seconds": [f"{row['seconds']:.1f}" if row["seconds"] is not None else "" for row in rows]}


def _in_words(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")


def searched_fields(studies: Sequence["Known"]) -> list[str]:
    """Fields that any of the studies searched, depth and learning rate first."""
    from search.importance import importances
    from search.outcome import MODEL

    shares: dict[str, float] = {}
    for known in studies:
        for trial in known.study.get_trials(deepcopy=False):
            shares |= {name: 0.0 for name in trial.params if name not in shares}
        for name, share in importances(known.study).items():
            shares[name] = max(shares[name], share)
    names = sorted(shares, key=lambda name: (name not in (MODEL, "depth", "lr"), -shares[name]))
    return ["depth_blocks" if name == "depth" else name for name in names]


def compare(words: Sequence[str], form: str, top: int | None, everything: bool, out: Path | None) -> int:
    """Print the comparison, or write it to a file.

    Raises:
        ConfigError: A study is nowhere, or the file cannot be written.
    """
    # Only here: they take seconds to import.
    with importing():
        from rich.console import Console

        from search.known import open_known
        from search.terminal import print_table, widened

    studies = open_known(words)
    rows = [row for known in studies for row in rows_of(known, top, everything)]
    if form == "table" and out is None:
        console = widened(Console(highlight=False))
        if not rows:
            console.print("No trial has completed yet")
            return 0
        names = ", ".join(known.name for known in studies)
        print_table(console, f"Trials of {names}, the best first", table_of(rows, searched_fields(studies)))
        return 0
    text = as_csv(rows) if form == "csv" else as_json(rows) + "\n"
    if out is None:
        sys.stdout.write(text)
        return 0
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error
    print(f"{len(rows)} trials written to {out}")
    return 0


def _form_of(options: argparse.Namespace) -> str:
    """The form that was asked for, or that a file's name asks for."""
    if options.format is not None:
        return str(options.format)
    if options.out is None:
        return "table"
    suffix = options.out.suffix.removeprefix(".")
    if suffix not in ("csv", "json"):
        raise ConfigError(f"--out: {options.out} ends in neither .csv nor .json; say --format")
    return str(suffix)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.compare",
        description="Show the trials of one study or several side by side, the best first.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="studies, and where their stores are")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="completed trials of each; 0 for all")
    parser.add_argument("--all", action="store_true", help="those too that were pruned, killed or have failed")
    parser.add_argument("--format", choices=("table", "csv", "json"), help="table by default, or what --out ends in")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write csv or json there")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(
        lambda: compare(options.words, _form_of(options), options.top or None, options.all, options.out),
        "nothing was written",
    )


if __name__ == "__main__":
    sys.exit(main())
