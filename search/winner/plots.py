"""The winner's figures as PNG files, which MLflow's pages show; the report has interactive figures of its own."""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from optuna.trial import FrozenTrial

# With more classes, numbers or names could not be read.
_MOST_NUMBERS, _MOST_NAMES = 20, 60


def confusion(evidence: Mapping[str, Any]) -> Figure | None:
    """Confusion matrix of the test images; None where it was not counted."""
    counts, classes = evidence.get("confusion"), evidence["classes"]
    if counts is None:
        return None
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    side = 3 + min(12.0, 0.4 * len(classes))
    figure, axes = _figure("the model's answer", "truth", (side + 1, side))
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, label="of its images", fraction=0.046, pad=0.04)
    if len(classes) <= _MOST_NAMES:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= _MOST_NUMBERS:
        for row, of_row in enumerate(counts):
            # A zero for each pair that is never confused would hide the others, and take half of the drawing's time.
            for column, count in enumerate(of_row):
                if count:
                    color = "white" if shares[row][column] > 0.5 else "black"
                    axes.text(column, row, count, ha="center", va="center", color=color)
    return figure


def reliability(evidence: Mapping[str, Any]) -> Figure | None:
    """Reliability diagram of the test images; None where the task has no probabilities."""
    bins = evidence.get("reliability")
    if not bins:
        return None
    figure, axes = _figure("probability the model gives", "how often that is right")
    axes.plot([0, 1], [0, 1], ":", color="grey", label="ideal")
    axes.plot([found["sure"] for found in bins], [found["right"] for found in bins], "o-", label="winner")
    axes.legend()
    return figure


def truth_and_answer(evidence: Mapping[str, Any]) -> Figure | None:
    """The winner's numbers against the true ones on test images; None for other tasks than regression."""
    points = evidence.get("points")
    if not points:
        return None
    figure, axes = _figure("truth", "the model's answer")
    for name, both in points.items():
        axes.plot(both["truth"], both["answer"], ".", alpha=0.6, label=name)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], ":", color="grey", label="ideal")
    axes.legend()
    return figure


#: By file name, the function that draws it from :func:`search.winner.evidence.evidence_of`.
FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "confusion": confusion,
    "reliability": reliability,
    "truth_and_answer": truth_and_answer,
}


def learning_curves(trials: Sequence[FrozenTrial], metric: str) -> Figure | None:
    """Learning curves of the best trials; None where no trial reported more than once.

    Args:
        trials: From best to worst; the first five with a curve are drawn.
        metric: Name of the score that they reported.
    """
    reported = [trial for trial in trials if len(trial.intermediate_values) > 1][:5]
    if not reported:
        return None
    figure, axes = _figure("step", f"validation {metric}")
    for trial in reported:
        steps = [step for step, score in trial.intermediate_values.items() if math.isfinite(score)]
        axes.plot(steps, [trial.intermediate_values[step] for step in steps], label=f"trial {trial.number}")
    axes.legend()
    return figure


def as_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    for text in figure.findobj(Text):
        # A name of a class with dollars in it is no formula.
        text.set_parse_math(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names of classes in scripts that the font lacks are drawn as boxes; the report's figures show them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # Cut to what is drawn, which takes a third of the time of a constrained layout.
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


def _figure(x: str, y: str, size: tuple[float, float] = (7, 5)) -> tuple[Figure, Any]:
    # Without pyplot, which keeps every figure in memory and looks for a display.
    figure = Figure(figsize=size)
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    return figure, axes
