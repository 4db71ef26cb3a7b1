"""The report's figures, each from a study's summary; None where there is nothing to draw.

``optuna.visualization`` draws similar ones from a study. They lack: pruned trials and names of strategies (history);
depth in blocks, means and intervals (slice); the choice of fields that differ (parallel coordinates); the choice of
a band of chance (importances); seconds where there is one objective (Pareto front); the best trials in
colour before all others in grey (intermediate values).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import plotly.graph_objects as go

from search.reporting.summary import Curve, Summary
from search.winner import bounds_of, mean_interval

# Colours that people with any colour vision can tell apart (Okabe and Ito, 2008), on light and dark.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#888888"
_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)
# Seen on light and dark, the best most; the ends of plotly's own scales are lost on one of them.
_FROM_WORST = [GREY, ORANGE, VERMILION]
_OF_OUTCOME = {"complete": BLUE, "pruned": ORANGE, "failed": VERMILION, "killed": PURPLE}

# More than these could not be told apart.
_MOST_CURVES, _MOST_AXES, _MOST_CLASSES, _MOST_NUMBERS = 30, 8, 60, 20

# Of more whole numbers plotly's own ticks are whole too.
_FEW_TICKS = 8

# Scores of trials have a tail below; intervals of fewer hold the true mean in 91 to 93% of cases.
_LEAST_OF_DEPTH = 6


def by_depth(summary: Summary) -> go.Figure | None:
    """Scores by depth: each trial, and each depth's mean with its 95% interval."""
    rows = [row for row in summary.complete if row["depth_blocks"] is not None and _is_finite(row["score"])]
    groups: dict[int, list[float]] = {}
    for row in rows:
        groups.setdefault(int(row["depth_blocks"]), []).append(row["score"])
    if len(groups) < 2:
        return None
    depths, bounds = sorted(groups), bounds_of(summary.metric, summary.is_lower_better)
    means = [mean(groups[depth]) for depth in depths]
    shown = [groups[depth] if len(groups[depth]) >= _LEAST_OF_DEPTH else [] for depth in depths]
    ends = [mean_interval(scores, bounds) or (None, None) for scores in shown]
    figure = _of_scores("blocks trained, counted from the head", summary)
    figure.add_scatter(
        x=[row["depth_blocks"] for row in rows],
        y=[row["score"] for row in rows],
        text=[_about(row) for row in rows],
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        mode="markers",
        cliponaxis=False,
        marker={"color": GREY, "opacity": 0.5, "size": 6},
        name="trials",
    )
    figure.add_scatter(
        x=depths,
        y=means,
        error_y={
            "type": "data",
            "array": [None if high is None else high - middle for (_, high), middle in zip(ends, means, strict=True)],
            "arrayminus": [None if low is None else middle - low for (low, _), middle in zip(ends, means, strict=True)],
            "thickness": 1.5,
        },
        mode="lines+markers",
        cliponaxis=False,
        line={"color": BLUE},
        marker={"size": 8},
        name="mean, 95% interval over trials",
        hovertemplate="depth %{x}<br>mean %{y:.4f}<extra></extra>",
    )
    return _with_whole_ticks(figure, depths)


def of_importances(summary: Summary) -> go.Figure | None:
    """The share of the trials' order that each field explains which stands out, and what chance reaches."""
    found = summary.importances
    shares = dict(sorted(found.shares.items(), key=lambda item: item[1])[-12:])
    if not shares or found.by_chance is None:
        return None
    figure = _figure("share of the order of trials by score", "")
    figure.add_bar(
        x=list(shares.values()),
        y=[_words(name) for name in shares],
        orientation="h",
        marker_color=BLUE,
        text=[f"{share:.0%}" for share in shares.values()],
        hovertemplate="%{y}: %{x:.0%}<extra></extra>",
    )
    figure.add_vline(x=found.by_chance, line_dash="dot", line_color=GREY, annotation_text="chance")
    figure.update_layout(xaxis_tickformat=".0%", showlegend=False, height=140 + 26 * len(shares))
    return figure


def parallel(summary: Summary) -> go.Figure | None:
    """Parallel coordinates: a line a completed trial through the searched fields, coloured by its score."""
    rows = [row for row in summary.complete if _is_finite(row["score"])]
    names = [name for name in summary.searched if len({str(row.get(name)) for row in rows}) > 1][:_MOST_AXES]
    if len(rows) < 2 or not names:
        return None
    scores = [row["score"] for row in rows]
    axes = [_axis(name, [row.get(name) for row in rows]) for name in names]
    axes.append({"label": summary.metric, "values": scores})
    figure = go.Figure(
        go.Parcoords(
            line={
                "color": scores,
                "colorscale": _FROM_WORST,
                "reversescale": summary.is_lower_better,
                "showscale": True,
            },
            dimensions=axes,
        )
    )
    # Room for the names of axes, which stand above them.
    figure.update_layout(margin={"t": 60, "b": 30, "l": 60, "r": 40}, height=380)
    return figure


def _axis(name: str, values: Sequence[Any]) -> dict[str, Any]:
    label = _words("depth" if name == "depth_blocks" else name)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        positive = all(value > 0 for value in values)
        if positive and max(values) >= 50 * min(values):
            low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
            ticks = list(range(low, high + 1))
            logs = [math.log10(value) for value in values]
            # As wide as its ticks: one beyond the values would lie on the label.
            shown = {"range": [low, high], "tickvals": ticks, "ticktext": [f"1e{tick}" for tick in ticks]}
            return {"label": label, "values": logs, **shown}
        return {"label": label, "values": list(values)}
    # A field that a trial did not draw has a tick of its own.
    texts = ["-" if value is None else str(value) for value in values]
    kinds = sorted(set(texts))
    return {
        "label": label,
        "values": [kinds.index(text) for text in texts],
        "tickvals": list(range(len(kinds))),
        "ticktext": [_words(kind) for kind in kinds],
    }


def history(summary: Summary) -> go.Figure | None:
    """Scores in the order of trials, the best so far, and the last scores of pruned trials."""
    complete = sorted((row for row in summary.complete if _is_finite(row["score"])), key=lambda row: row["trial"])
    if not complete:
        return None
    figure = _of_scores("trial", summary)
    figure.add_scatter(
        x=[row["trial"] for row in complete],
        y=[row["score"] for row in complete],
        text=[_about(row) for row in complete],
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
        mode="markers",
        cliponaxis=False,
        marker={"color": BLUE, "size": 7},
        name="complete",
    )
    best_so_far: list[float] = []
    better = min if summary.is_lower_better else max
    for row in complete:
        best_so_far.append(better([*best_so_far[-1:], row["score"]]))
    figure.add_scatter(
        x=[row["trial"] for row in complete],
        y=best_so_far,
        mode="lines",
        line={"color": GREEN, "shape": "hv"},
        name="best so far",
        hovertemplate="best so far %{y:.4f}<extra></extra>",
    )
    stopped = [curve for curve in summary.curves if curve.outcome == "pruned"]
    if stopped:
        figure.add_scatter(
            x=[curve.trial for curve in stopped],
            y=[curve.scores[-1] for curve in stopped],
            text=[f"trial {curve.trial}: {curve.label}<br>pruned at step {curve.steps[-1]}" for curve in stopped],
            hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
            mode="markers",
            cliponaxis=False,
            marker={"color": ORANGE, "symbol": "x", "size": 7},
            name="pruned, its last score",
        )
    return _with_whole_ticks(figure, [row["trial"] for row in complete] + [curve.trial for curve in stopped])


def against_seconds(summary: Summary) -> go.Figure | None:
    """Scores against the first cost, or seconds, and the Pareto front of both."""
    cost = summary.costs[0] if summary.costs else "seconds"
    rows = [row for row in summary.complete if row.get(cost) is not None and _is_finite(row["score"])]
    if len(rows) < 2:
        return None
    figure = _of_scores(_words(cost), summary)
    figure.add_scatter(
        x=[row[cost] for row in rows],
        y=[row["score"] for row in rows],
        text=[_about(row) for row in rows],
        hovertemplate="%{text}<br>%{y:.4f}, " + _words(cost) + " %{x:,.4g}<extra></extra>",
        mode="markers",
        cliponaxis=False,
        marker={"color": GREY, "size": 7},
        name="trials",
    )
    front = sorted((summary.row(number) for number in summary.front), key=lambda row: row[cost])
    figure.add_scatter(
        x=[row[cost] for row in front],
        y=[row["score"] for row in front],
        text=[_about(row) for row in front],
        hovertemplate="%{text}<br>%{y:.4f}, " + _words(cost) + " %{x:,.4g}<extra></extra>",
        mode="lines+markers",
        cliponaxis=False,
        line={"color": VERMILION, "shape": "hv"},
        marker={"size": 9},
        name="Pareto front",
    )
    return figure


def learning_curves(summary: Summary) -> go.Figure | None:
    """Learning curves of the best trials, and behind them those of some others."""
    by_number = {curve.trial: curve for curve in summary.curves if len(curve.steps) > 1}
    best = [by_number[row["trial"]] for row in summary.complete if row["trial"] in by_number][:5]
    others = [curve for curve in by_number.values() if curve not in best]
    others = others[:: max(1, math.ceil(len(others) / _MOST_CURVES))]
    if not best:
        return None
    figure = _of_scores("step", summary)
    for curve in others:
        _add_curve(figure, curve, {"color": GREY, "width": 1}, opacity=0.5, showlegend=False)
    for curve, color in zip(best, _COLORS, strict=False):
        _add_curve(figure, curve, {"color": color, "width": 2}, name=f"trial {curve.trial}")
    return _with_whole_ticks(figure, [step for curve in by_number.values() for step in curve.steps])


def _add_curve(figure: go.Figure, curve: Curve, line: Mapping[str, Any], **how: Any) -> None:
    figure.add_scatter(
        x=curve.steps,
        y=[score if _is_finite(score) else None for score in curve.scores],
        mode="lines",
        line=dict(line),
        text=[f"trial {curve.trial}: {curve.label} ({curve.outcome})"] * len(curve.steps),
        hovertemplate="%{text}<br>step %{x}: %{y:.4f}<extra></extra>",
        **how,
    )


def predictions(summary: Summary) -> go.Figure | None:
    """Scores against what the learnt policy predicted before each trial."""
    if not summary.foreseen:
        return None
    figure = _of_scores("predicted", summary)
    found, (least, most) = summary.foreseen, bounds_of(summary.metric, summary.is_lower_better)
    figure.add_scatter(
        x=[one.predicted for one in found],
        y=[one.score for one in found],
        mode="markers",
        cliponaxis=False,
        marker={"color": BLUE, "size": 8},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, min(one.high, most) - one.predicted) for one in found],
            "arrayminus": [max(0.0, one.predicted - max(one.low, least)) for one in found],
            "color": GREY,
        },
        text=[_about(summary.row(one.trial)) for one in found],
        hovertemplate="%{text}<br>predicted %{x:.4f}, came %{y:.4f}<extra></extra>",
        showlegend=False,
    )
    every = [value for one in found for value in (one.predicted, one.score)]
    _add_ideal(figure, min(every), max(every))
    return figure


def confusion(summary: Summary) -> go.Figure | None:
    """Confusion matrix of the test images."""
    counts = (summary.evidence or {}).get("confusion")
    if counts is None or len(counts) > _MOST_CLASSES:
        return None
    classes = summary.evidence["classes"] if summary.evidence is not None else []
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    figure = _figure("the model's answer", "truth")
    figure.add_heatmap(
        z=shares,
        x=classes,
        y=classes,
        text=counts,
        colorscale="Blues",
        zmin=0,
        zmax=1,
        texttemplate="%{text}" if len(classes) <= _MOST_NUMBERS else None,
        hovertemplate="%{y} called %{x}: %{text} images, %{z:.1%}<extra></extra>",
        # Beside the bar: above it, the title would lie on the first number.
        colorbar={"tickformat": ".0%", "title": {"text": "of its images", "side": "right"}},
    )
    figure.update_layout(yaxis_autorange="reversed", height=max(360, 24 * len(classes) + 140))
    # Names of classes may be numbers, which are no positions.
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def reliability(summary: Summary) -> go.Figure | None:
    """Reliability diagram of the test images: how often the winner is right, against its probabilities."""
    bins = (summary.evidence or {}).get("reliability")
    if not bins:
        return None
    figure = _figure("probability the model gives", "how often that is right")
    _add_ideal(figure, 0, 1)
    figure.add_scatter(
        x=[found["sure"] for found in bins],
        y=[found["right"] for found in bins],
        mode="lines+markers",
        line={"color": BLUE},
        marker={"size": [6 + 18 * math.sqrt(f["count"] / max(g["count"] for g in bins)) for f in bins]},
        text=[f"{found['count']:,}" for found in bins],
        hovertemplate="%{text} answers<br>sure %{x:.3f}, right %{y:.3f}<extra></extra>",
        name="winner, size by number of answers",
    )
    return figure


def truth_and_answer(summary: Summary) -> go.Figure | None:
    """The winner's numbers against the true ones, on test images."""
    points = (summary.evidence or {}).get("points")
    if not points:
        return None
    figure = _figure("truth", "the model's answer")
    for place, (name, both) in enumerate(points.items()):
        marker = {"color": _COLORS[place % len(_COLORS)], "opacity": 0.6}
        figure.add_scatter(x=both["truth"], y=both["answer"], mode="markers", name=name, marker=marker)
    values = [value for both in points.values() for value in both["truth"]]
    _add_ideal(figure, min(values), max(values))
    return figure


def _add_ideal(figure: go.Figure, low: float, high: float) -> None:
    ends = [low, high]
    line = {"color": GREY, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="ideal", hoverinfo="skip")


def time_spent(summary: Summary) -> go.Figure | None:
    """Seconds of all trials by outcome, and the seconds that cached features saved."""
    seconds: dict[str, float] = {}
    for row in summary.rows:
        seconds[row["outcome"]] = seconds.get(row["outcome"], 0.0) + (row["seconds"] or 0.0)
    if not seconds:
        return None
    figure = _figure("seconds", "")
    for outcome, spent in seconds.items():
        figure.add_bar(
            x=[spent],
            y=["spent"],
            orientation="h",
            name=outcome,
            marker_color=_OF_OUTCOME[outcome],
            hovertemplate=f"{outcome}: %{{x:,.1f}} s<extra></extra>",
        )
    if summary.seconds_spared:
        figure.add_bar(
            x=[sum(summary.seconds_spared.values())],
            y=["saved by cached features"],
            orientation="h",
            name="saved",
            marker_color=GREEN,
            hovertemplate="%{x:,.1f} s, estimated<extra></extra>",
        )
    figure.update_layout(barmode="stack", height=220)
    return figure


#: By its name in the page, the function that draws a figure.
FIGURES: Mapping[str, Callable[[Summary], go.Figure | None]] = {
    "depth": by_depth,
    "importances": of_importances,
    "parallel": parallel,
    "history": history,
    "pareto": against_seconds,
    "curves": learning_curves,
    "predictions": predictions,
    "confusion": confusion,
    "reliability": reliability,
    "points": truth_and_answer,
    "time": time_spent,
}


def _figure(x: str, y: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        xaxis_title=x,
        yaxis_title=_words(y),
        margin={"t": 20, "b": 50, "l": 60, "r": 20},
        height=360,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        hovermode="closest",
    )
    # Long names of classes need room.
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def _of_scores(x: str, summary: Summary) -> go.Figure:
    """A figure with scores upwards, whose axis ends where the metric does: no share is above 1."""
    figure = _figure(x, f"validation {summary.metric}")
    low, high = (end if math.isfinite(end) else None for end in bounds_of(summary.metric, summary.is_lower_better))
    figure.update_yaxes(autorangeoptions={"clipmin": low, "clipmax": high})
    return figure


def _with_whole_ticks(figure: go.Figure, values: Sequence[int]) -> go.Figure:
    """The figure with ticks of its first axis at whole numbers; of few values plotly's own lie between them."""
    if max(values) - min(values) <= _FEW_TICKS:
        figure.update_xaxes(dtick=1)
    if len(set(values)) == 1:
        figure.update_xaxes(range=[values[0] - 0.5, values[0] + 0.5])
    return figure


def _about(row: Mapping[str, Any]) -> str:
    return f"trial {row['trial']}: {row['name']}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
