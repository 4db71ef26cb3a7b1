"""What MLflow's pages show about a study that has ended: a note, learning curves and the report."""

import re
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from search.processes import temporary_folder
from search.reporting.importance import importances
from search.reporting.layers import which_layers
from search.reporting.page import build
from search.reporting.rows import rows_of
from search.reporting.summary import summarize
from search.reporting.terminal import columns_of, title_of
from search.storage import RUN_ID, StoredStudy, is_outage
from search.tracking import best_first, page_of
from search.trials import OpenStudy
from search.winner import Winner, plots
from strategies import ConfigError

#: Artifact of the study's run.
REPORT_FILE = "report.html"

# MLflow's tag for the Markdown text that its pages show above a run.
_NOTE_TAG = "mlflow.note.content"
_BEST = 10


def write_note(open_study: OpenStudy, best: Sequence[FrozenTrial], winner: Winner) -> None:
    """Log note, learning curves and report to the study's run, and pin the winner in the study's view.

    What an earlier end of the study has logged is replaced.

    Args:
        open_study: The study, whose winner was crowned.
        best: Its completed trials, best first.
        winner: The winner.

    Raises:
        AwayError: MLflow cannot be reached.
    """
    stored = StoredStudy(open_study.study, open_study.tracker.uri)
    open_study.tracker.log(open_study.parent_run, tags={_NOTE_TAG: note(open_study, stored, winner)})
    curves = plots.learning_curves(best, open_study.config.metric)
    if curves is not None:
        open_study.tracker.log_file(open_study.parent_run, "winner/learning_curves.png", plots.as_png(curves))
    # The report is made from what MLflow has stored.
    open_study.tracker.flush()
    try:
        _pin(open_study, next(trial for trial in best if trial.number == winner.trial))
        with temporary_folder(open_study.temporary) as folder:
            page = build(summarize(stored, folder))
    except ConfigError as error:
        if isinstance(error.__cause__, Exception) and is_outage(error.__cause__):
            raise open_study.tracker.writer.away(error.__cause__) from error
        raise
    open_study.tracker.log_file(open_study.parent_run, REPORT_FILE, page.encode())


def _pin(open_study: OpenStudy, winner: FrozenTrial) -> None:
    """Pin the winner in the study's view: MLflow would list the newest of equal trials first."""
    run = open_study.tracker.reader.id_of(winner.user_attrs[RUN_ID])
    space = open_study.config.space()
    open_study.tracker.save_view(best_first(space, open_study.chooses_model, open_study.lower_is_better, run))


def note(open_study: OpenStudy, stored: StoredStudy, winner: Winner) -> str:
    """The winner, a link to the report, the best strategies and what mattered, as Markdown with links into MLflow."""
    rows = rows_of(stored, top=_BEST)
    metric = open_study.config.metric.replace("_", " ")
    # The link to the report comes first: MLflow folds all but the first lines.
    above = [
        f"[Report]({_page(open_study, open_study.parent_run)}/artifacts/{REPORT_FILE}) · "
        f"[all trials, the best first]({page_of(open_study.tracker.experiment_id)}) · {open_study.config.description}",
        f"Winner: trial {winner.trial}, test {metric} {winner.test_score:.4f} ({winner.interval}). "
        f"Model: `{winner.model_uri}`",
    ]
    table = [f"| rank | strategy | {metric} | seconds |", "| ---: | --- | ---: | ---: |"]
    for row in rows:
        name = f"{row['trial']} · {plain(row['name'])}"
        # MLflow may have lost the run of a trial, which still counts.
        if open_study.tracker.reader.lacks(row["run"]) != "run":
            name = f"[{name}]({_page(open_study, row['run'])})"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.append(f"| {row['rank']} | {name} | {row['score']:.4f} | {seconds} |")
    told = [plain(which_layers(open_study.study).paragraph), importances(open_study.study).sentence]
    return "\n\n".join([*above, "\n".join(table), *_confirmed(winner), *told])


def _confirmed(winner: Winner) -> list[str]:
    """The best strategies with new seeds, as a title and a table in Markdown; empty if none was trained."""
    if not winner.confirmed:
        return []
    columns = columns_of(winner.confirmed)
    lines = [list(columns), ["---:"] * len(columns), *zip(*columns.values(), strict=True)]
    return [f"{title_of(winner)}:", "\n".join(f"| {' | '.join(cells)} |" for cells in lines)]


def plain(text: str) -> str:
    """A text as Markdown that shows it as it is: a model's name may hold a link or an HTML element."""
    return re.sub(r"([\\`\[\]<>|&])", r"\\\1", text)


def _page(open_study: OpenStudy, run: str) -> str:
    """Address of a run's page, relative to any page of MLflow."""
    return f"#/experiments/{open_study.tracker.experiment_id}/runs/{open_study.tracker.reader.id_of(run)}"
