"""One page about a study that needs nothing else: ``python -m search.report STUDY``."""

import argparse
import base64
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.imports import importing
from search.run import exit_code
from strategies import ConfigError, Strategy

if TYPE_CHECKING:
    from search.summary import Summary

_USAGE = """\
The study is named as for search.run, or by the name it has in the store. Where the stores are, a study file says, or
store.url=... and tracking.uri=.... A search writes the page to its run's artifacts by itself, as report.html."""

# Rows of the table of the best.
_BEST = 20


def build(summary: "Summary") -> str:
    """The page about a study, as HTML that loads nothing."""
    import jinja2
    import plotly.offline

    from search.figures import FIGURES
    from search.summary import presets_of
    from search.terminal import columns_of

    figures = {name: draw(summary) for name, draw in FIGURES.items()}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["words"] = lambda name: str(name).replace("_", " ")
    return page.get_template("report.html").render(
        summary=summary,
        best=summary.best,
        confirmed=columns_of(summary.winner.confirmed) if summary.winner is not None else {},
        presets=presets_of(summary)[:3],
        figures={name: _as_json(figure) for name, figure in figures.items() if figure is not None},
        table=_table(summary),
        outcomes=_outcomes(summary),
        failures=[row for row in summary.rows if row["reason"] and row["outcome"] in ("failed", "killed")],
        strategy=_pasteable(summary),
        study_file=_as_yaml(summary.config),
        mistakes=_with_pictures(summary),
        pictures=[_data_url(png) for png in summary.pictures],
        seconds=sum(row["seconds"] or 0.0 for row in summary.rows),
        spared=sum(summary.seconds_spared.values()),
        plotly=plotly.offline.get_plotlyjs(),
    )


def _as_json(figure: Any) -> str:
    """A figure's JSON that cannot end the element it stands in."""
    return str(figure.to_json()).replace("</", "<\\/")


def _table(summary: "Summary") -> dict[str, list[str]]:
    from search.compare import table_of

    rows = summary.complete[:_BEST]
    columns = table_of(rows, summary.searched) if rows else {}
    if rows:
        columns["strategy"] = [row["name"] for row in rows]
    return columns


def _outcomes(summary: "Summary") -> dict[str, int]:
    from search.outcome import ENDINGS

    found = [row["outcome"] for row in summary.rows]
    return {outcome: found.count(outcome) for outcome in ENDINGS if outcome in found}


def _pasteable(summary: "Summary") -> str:
    """The best strategy as a preset of a study file: what differs from the defaults, and depth and rate in any case."""
    best, defaults = summary.best, Strategy()
    if best is None:
        return ""
    values: dict[str, Any] = {"depth": best["depth_blocks"], "lr": best["lr"]}
    for field in fields(Strategy):
        if field.name not in values and best.get(field.name) != getattr(defaults, field.name):
            values[field.name] = best[field.name]
    return _as_yaml({"presets": {"winner": values}})


def _as_yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _with_pictures(summary: "Summary") -> list[dict[str, Any]]:
    mistakes = summary.evidence["mistakes"] if summary.evidence is not None else []
    return [{**one, "picture": _data_url(png)} for one, png in zip(mistakes, summary.mistakes, strict=True)]


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def write(words: Sequence[str], out: Path | None) -> int:
    """Build the page of each study and write it.

    Raises:
        ConfigError: A study is nowhere, its stores cannot be read, or the file cannot be written.
    """
    # Only here: they take seconds to import.
    with importing():
        from search.known import open_known
        from search.summary import summarize

    studies = open_known(words)
    if out is not None and len(studies) > 1:
        raise ConfigError(f"--out: {len(studies)} studies have a page each; name one study")
    for known in studies:
        file = out or Path(f"{known.name}-report.html")
        page = build(summarize(known))
        try:
            file.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out: {file} cannot be written: {error.strerror}") from error
        print(f"{known.name}: {file.absolute().as_uri()}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.report",
        description="Write one page about a study: the answer, what led to it, and how to reproduce it.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="STUDY or key=value", help="studies, and where their stores are")
    parser.add_argument("--out", type=Path, metavar="FILE", help="STUDY-report.html in the working folder by default")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(lambda: write(options.words, options.out), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
