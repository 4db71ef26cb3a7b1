"""The report of a study: one HTML page."""

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strategies import Strategy, counted

if TYPE_CHECKING:
    from search.reporting.summary import Summary


# Rows in the table of the best trials.
_BEST = 20


def build(summary: "Summary") -> str:
    """The page about a study, as HTML that needs no other file and no network."""
    import jinja2
    import plotly.offline

    from search.reporting.figures import FIGURES
    from search.reporting.summary import presets_of
    from search.reporting.terminal import columns_of

    figures = {name: draw(summary) for name, draw in FIGURES.items()}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["counted"] = counted
    page.filters["words"] = lambda name: str(name).replace("_", " ")
    return page.get_template("report.html").render(
        summary=summary,
        about=_about(summary),
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


def _about(summary: "Summary") -> list[str]:
    """What was searched, for the heading: models, images, classes, dates."""
    config, images = summary.config, summary.images
    data, names = config["data"], config["model"]["name"]
    place = next((data[key] for key in ("root", "dataset", "manifest", "annotations", "shards") if data.get(key)), None)
    shown = place if isinstance(place, str) else None
    parts = [names if isinstance(names, str) else " or ".join(names)]
    parts.append(" ".join(filter(None, (data.get("source"), shown))))
    if images:
        counts = {"training": "to train on", "validation": "to choose by", "testing": "to test on"}
        parts.append(", ".join(f"{images[use]:,} images {what}" for use, what in counts.items() if use in images))
        kind = "number" if config["task"] == "regression" else "class"
        several = {"number": "numbers", "class": "classes"}
        parts.append(f"{images['classes']:,} {kind if images['classes'] == 1 else several[kind]}")
    if summary.began is not None and summary.ended is not None:
        days = [f"{time:%Y-%m-%d}" for time in (summary.began, summary.ended)]
        parts.append(" to ".join(dict.fromkeys(days)))
    return parts


def _as_json(figure: Any) -> str:
    """A figure's JSON, escaped so that it cannot end its ``script`` element."""
    return json.dumps(_without_markup(json.loads(figure.to_json()))).replace("</", "<\\/")


def _without_markup(value: Any) -> Any:
    """Values of a figure whose texts, such as names of classes, cannot be links: plotly.js reads them as HTML."""
    if isinstance(value, dict):
        # Our own templates have line breaks.
        return {key: one if key == "hovertemplate" else _without_markup(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_markup(one) for one in value]
    return html.escape(value, quote=False) if isinstance(value, str) else value


def _table(summary: "Summary") -> dict[str, list[str]]:
    from search.reporting.rows import table_of

    rows = summary.complete[:_BEST]
    columns = table_of(rows, summary.searched) if rows else {}
    if rows:
        columns["strategy"] = [row["name"] for row in rows]
    return columns


def _outcomes(summary: "Summary") -> dict[str, int]:
    from search.storage import ENDINGS

    found = [row["outcome"] for row in summary.rows]
    return {outcome: found.count(outcome) for outcome in ENDINGS if outcome in found}


def _pasteable(summary: "Summary") -> str:
    """The best strategy as a preset of a study file: depth, learning rate, and all that differs from the defaults."""
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
