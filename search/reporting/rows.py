"""The trials of studies as rows, for the terminal's table, CSV and JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from search.storage import StoredStudy


# Fields of strategies that a table has room for.
_MAX_FIELDS = 8


def rows_of(stored: "StoredStudy", top: int | None, everything: bool = False) -> list[dict[str, Any]]:
    """A study's trials as flat records, the best first.

    Args:
        stored: The stored study.
        top: Number of completed trials at most; None for all.
        everything: Whether trials that did not complete follow, in their order.
    """
    from search.scheduling import ranked
    from search.storage import IDENTITY, WINNER, outcome_of

    # Read once, since each access reads the store.
    attrs, costs = stored.study.user_attrs, stored.costs
    identity, winner = attrs[IDENTITY], attrs.get(WINNER) or {}
    model = identity["model.name"]
    shared = {
        "study": stored.name,
        "metric": stored.metric,
        "model": model if isinstance(model, str) else None,
        "data": identity["data (fingerprint)"],
        "winner": winner.get("trial"),
        "test_score": winner.get("test_score"),
    }
    best = ranked(stored.study)
    found = [_row(shared, costs, trial, rank) for rank, trial in enumerate(best[:top], start=1)]
    if everything:
        others = stored.study.get_trials(deepcopy=False)
        found += [_row(shared, costs, trial, None) for trial in others if outcome_of(trial) not in (None, "complete")]
    return found


def _row(shared: Mapping[str, Any], costs: Sequence[str], trial: "FrozenTrial", rank: int | None) -> dict[str, Any]:
    from search.storage import DEPTH, MODEL, PRESET, REASON, RUN_ID, SEED, STRATEGY, outcome_of, score_of
    from strategies import Strategy, one_line

    attrs = trial.user_attrs
    # A trial that was killed at once may have drawn no parameters, or have stored only some attributes.
    strategy = dict(attrs[STRATEGY]) if attrs.keys() >= {STRATEGY, DEPTH} else {}
    model = trial.params.get(MODEL)
    label = ""
    if strategy:
        label = one_line(Strategy.from_dict({**strategy, "depth": attrs[DEPTH]}), model or "")
    return {
        "study": shared["study"],
        "rank": rank,
        "trial": trial.number,
        "name": label,
        "outcome": outcome_of(trial),
        "metric": shared["metric"],
        "score": score_of(trial),
        **dict(zip(costs, (trial.values or [])[1:], strict=False)),
        "test_score": shared["test_score"] if trial.number == shared["winner"] else None,
        "seconds": round(trial.duration.total_seconds(), 3) if trial.duration else None,
        "model": model or shared["model"],
        "data": shared["data"],
        "depth_blocks": attrs.get(DEPTH),
        **strategy,
        "seed": attrs.get(SEED),
        "preset": attrs.get(PRESET),
        "reason": attrs.get(REASON),
        "run": attrs.get(RUN_ID),
    }


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The records as a JSON list; values that JSON lacks, such as infinity, become null."""
    import pandas as pd

    # Through a data frame, so that every record has every key.
    return json.dumps(json.loads(pd.DataFrame(list(rows)).to_json(orient="records")), indent=1, ensure_ascii=False)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The records as CSV with a header."""
    import pandas as pd

    return str(pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n"))


def table_of(
    rows: Sequence[Mapping[str, Any]], searched: Sequence[str], compares: bool = False
) -> dict[str, list[str]]:
    """Columns of a table: study and trial, score, and the first searched fields in which trials differ.

    Args:
        rows: Rows of :func:`rows_of`.
        searched: Searched fields, the most important first.
        compares: Whether studies are compared: then there are the winners' test scores, and of several studies the
            models and, where they differ, the fingerprints of the images.
    """

    def texts(name: str) -> list[str]:
        return [_in_words(row.get(name)) for row in rows]

    differing = [name for name in searched if len(set(texts(name))) > 1][:_MAX_FIELDS]
    metrics = {row["metric"] for row in rows}
    scores = [f"{row['score']:.4f}" if row["score"] is not None else "" for row in rows]
    if len(metrics) > 1:
        scores = [f"{row['metric']} {score}" if score else "" for row, score in zip(rows, scores, strict=True)]
    columns = {"study": texts("study")} if len({row["study"] for row in rows}) > 1 else {}
    if compares and columns:
        columns |= {"model": texts("model")} | ({"data": texts("data")} if len(set(texts("data"))) > 1 else {})
    columns |= {"rank": texts("rank"), "trial": texts("trial")}
    if any(row["outcome"] != "complete" for row in rows):
        columns["outcome"] = texts("outcome")
    column = metrics.pop() if len(metrics) == 1 else "score"
    columns[column] = scores
    tests = [row["test_score"] for row in rows]
    if compares and any(score is not None for score in tests):
        columns[f"test_{column}"] = [f"{score:.4f}" if score is not None else "" for score in tests]
    columns |= {"depth" if name == "depth_blocks" else name: texts(name) for name in differing if name not in columns}
    return columns | {"seconds": [f"{row['seconds']:.1f}" if row["seconds"] is not None else "" for row in rows]}


def _in_words(value: Any) -> str:
    if value is None:
        return ""
    # Names as they are pasted into a command.
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def searched_fields(studies: Sequence["StoredStudy"]) -> list[str]:
    """Fields that any of the studies searched: model, depth and learning rate first, then the most important."""
    from search.reporting.importance import importances
    from search.storage import MODEL

    shares: dict[str, float] = {}
    for stored in studies:
        for trial in stored.study.get_trials(deepcopy=False):
            shares |= {name: 0.0 for name in trial.params if name not in shares}
        for name, share in importances(stored.study).shares.items():
            shares[name] = max(shares[name], share)
    names = sorted(shares, key=lambda name: (name not in (MODEL, "depth", "lr"), -shares[name]))
    return ["depth_blocks" if name == "depth" else name for name in names]
