"""What MLflow's pages show of a study that has ended: a note with the best, learning curves, the report."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search import plots
from search.best_first import page_of
from search.compare import rows_of
from search.known import Known
from search.outage import is_outage
from search.report import build
from search.summary import summarize
from search.trial import Bench
from search.winner import Winner
from strategies import ConfigError

#: Artifact of the study's run.
REPORT_FILE = "report.html"

# MLflow's tag of what its pages show, as Markdown, above a run.
_NOTE_TAG = "mlflow.note.content"
_BEST = 10


def present(bench: Bench, best: Sequence[FrozenTrial], winner: Winner) -> None:
    """Log to the study's run what is to be looked at first; what was there of an earlier end is replaced.

    Args:
        bench: Of the study, whose winner was crowned.
        best: Its completed trials, best first.
        winner: The winner.

    Raises:
        AwayError: MLflow cannot be reached.
    """
    known = Known(bench.study, bench.tracker.uri)
    bench.tracker.log(bench.parent_run, tags={_NOTE_TAG: note(bench, known, winner)})
    curves = plots.learning_curves(best, bench.config.metric)
    if curves is not None:
        bench.tracker.log_file(bench.parent_run, "winner/learning_curves.png", plots.as_png(curves))
    # The report is made of what is written.
    bench.tracker.flush()
    try:
        page = build(summarize(known))
    except ConfigError as error:
        if isinstance(error.__cause__, Exception) and is_outage(error.__cause__):
            raise bench.tracker.writer.away(error.__cause__) from error
        raise
    bench.tracker.log_file(bench.parent_run, REPORT_FILE, page.encode())


def note(bench: Bench, known: Known, winner: Winner) -> str:
    """The winner, the way to the report, and the best strategies, as Markdown with links into MLflow's pages."""
    rows = rows_of(known, top=_BEST)
    metric = bench.config.metric.replace("_", " ")
    # The way to the report first: MLflow folds all but the first lines.
    above = [
        f"[Report]({_page(bench, bench.parent_run)}/artifacts/{REPORT_FILE}) · "
        f"[all trials, the best first]({page_of(bench.tracker.experiment_id)}) · {bench.config.description}",
        f"Winner: trial {winner.trial}, test {metric} {winner.test_score:.4f} (95% interval {winner.test_low:.4f} to "
        f"{winner.test_high:.4f}, {winner.test_images:,} images). Model: `{winner.model_uri}`",
    ]
    table = [f"| rank | strategy | {metric} | seconds |", "| ---: | --- | ---: | ---: |"]
    for row in rows:
        name = f"[{row['trial']} · {row['name']}]({_page(bench, row['run'])})"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.append(f"| {row['rank']} | {name} | {row['score']:.4f} | {seconds} |")
    return "\n\n".join([*above, "\n".join(table)])


def _page(bench: Bench, run: str) -> str:
    """Where MLflow shows a run, from any of its pages."""
    return f"#/experiments/{bench.tracker.experiment_id}/runs/{bench.tracker.id_of(run)}"
