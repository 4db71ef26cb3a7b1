"""The results of several studies in one table, for the end of a sweep."""

from collections.abc import Sequence

from search.config import StudyConfig
from search.reporting.console import SafeConsole
from search.reporting.rows import rows_of
from search.reporting.terminal import print_table, widened
from search.scheduling import Ledger
from search.storage import WINNER, open_one
from search.winner import Winner
from strategies import ConfigError


def print_results(configs: Sequence[StudyConfig]) -> None:
    """Print a row a study, in the order in which they ran: trials, scores, and the strategy of the winner."""
    rows = [_row(config) for config in configs]
    columns = {name: [row.get(name, "") for row in rows] for name in ("study", "trials", "validation", "test")}
    columns["95% interval"] = [row.get("interval", "") for row in rows]
    columns["strategy"] = [row.get("strategy", "") for row in rows]
    print_table(widened(SafeConsole(highlight=False)), f"Winners of {len(rows)} studies", columns)


def _row(config: StudyConfig) -> dict[str, str]:
    name = str(config.name)
    try:
        stored = open_one(config.store.url, config.tracking.uri, name)
    except ConfigError:
        # The study was refused before it began, and its error was printed.
        return {"study": name, "strategy": "not searched"}
    found = {"study": name, "trials": str(Ledger(stored.study).counted)}
    if WINNER not in stored.study.user_attrs:
        return found | {"strategy": "no winner"}
    winner = Winner.from_dict(stored.study.user_attrs[WINNER])
    best = next(row for row in rows_of(stored, top=None) if row["trial"] == winner.trial)
    return found | {
        "validation": f"{winner.metric} {best['score']:.4f}",
        "test": f"{winner.test_score:.4f}",
        "interval": f"{winner.test_low:.4f} to {winner.test_high:.4f}",
        "strategy": best["name"],
    }
