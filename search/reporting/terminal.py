"""The terminal's output of a search: progress, a line a trial, and the result at the end."""

import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType

from optuna.trial import FrozenTrial
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from search.config import Cost, fitted, printable
from search.reporting.console import SafeConsole
from search.reporting.importance import Importances
from search.reporting.time_left import TimeLeft
from search.storage import DEPTH, ENDINGS, MODEL, REASON, STRATEGY, outcome_of, score_of
from search.tracking import EpochEnded, Event, TrialEnded, TrialStarted
from search.winner import TRIAL, Confirmed, Winner
from strategies import counted

# For a large space, a table of all fields would be wider than any terminal. MLflow has everything.
_MAX_FIELDS = 8

# Lines in a log file are not wrapped at 80 columns.
_LOG_WIDTH = 160

_COST_FORMATS: dict[Cost, str] = {"seconds": ".1f", "parameters_trained": ",.0f"}


# Heights of a curve that is as high as a line of text, and its most columns.
_HEIGHTS, _MOST_COLUMNS = "▁▂▃▄▅▆▇█", 16


class _TimeLeftColumn(ProgressColumn):
    """The time that the search will take until its end, and its end by the clock; of other bars, nothing."""

    def render(self, task: Task) -> Text:
        left: TimeLeft | None = task.fields.get("left")
        now = time.monotonic()
        if left is None or not (words := left.in_words(now)):
            return Text()
        return Text(f"{words}, until {clock(left.seconds(now))}")


class Terminal:
    """Progress bars on a terminal, plain lines elsewhere.

    Args:
        metric: Name of the score.
        console: Where to print.
        costs: Names of the values that follow the score in each trial.
    """

    def __init__(self, metric: str, console: Console | None = None, costs: Sequence[Cost] = ()) -> None:
        self._console = widened(console or SafeConsole(highlight=False))
        self._metric = metric
        self._costs = costs
        # By trial, since linear probes are trained together.
        self._labels: dict[int, str] = {}
        # By worker; this process is 0.
        self._newest: dict[int, str] = {}
        self._trial_bars: dict[int, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _TimeLeftColumn(Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._downloads: set[str] = set()
        self._study_bar: TaskID | None = None
        self._left: TimeLeft | None = None
        # The best score after each trial, with the time on the monotonic clock.
        self._best: list[tuple[float, float]] = []

    def __enter__(self) -> "Terminal":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._print(Text(text))

    def _print(self, line: Text) -> None:
        """Print a line; on a terminal, one that is too wide is broken between words."""
        if self._console.is_terminal:
            shown = Text(fitted(line.plain, self._console.width))
            # Styles are of a line's first words, which stay where they are.
            shown.spans = line.spans
            line = shown
        self._console.print(line, soft_wrap=True)

    def reading(self, what: str, done: int, total: int) -> None:
        """Show how many images have been read, or how far another preparation is."""
        if self._study_bar is None:
            self._study_bar = self._progress.add_task(what, total=total, note="")
        self._progress.update(self._study_bar, description=what, completed=done, total=total)

    def downloading(self, what: str, done: int, total: int) -> None:
        """Print a download's size once, and show its progress; both in bytes."""
        if what not in self._downloads:
            self._downloads.add(what)
            self.say(f"{what}, {total / 1e6:,.1f} MB")
        self.reading(f"{what} (MB)", done // 10**6, max(1, total // 10**6))

    def study_started(self, done: int, total: int | None, deadline: float = math.inf) -> None:
        """Begin the progress bar of trials.

        Args:
            done: Trials that count against the budget so far.
            total: The budget's trials; None for no limit.
            deadline: When the budget's hours end, by the monotonic clock.
        """
        if self._study_bar is not None:
            self._progress.remove_task(self._study_bar)
        self._left = TimeLeft(time.monotonic(), math.inf if total is None else total - done, deadline)
        self._study_bar = self._progress.add_task("trials", total=total, completed=done, note="", left=self._left)

    def hear(self, event: Event) -> None:
        """Show an event of a trial."""
        match event:
            case TrialStarted():
                self._trial_started(event)
            case EpochEnded() if event.worker in self._trial_bars:
                # A narrow terminal cuts the end.
                note = f"{self._metric} {event.score:.4f}  {self._newest[event.worker]}"
                self._progress.update(self._trial_bars[event.worker], completed=event.result.epoch, note=note)
            case TrialEnded():
                self._trial_ended(event)

    def _trial_started(self, event: TrialStarted) -> None:
        """Begin the bar of epochs of a worker's trial."""
        self._labels[event.number] = self._newest[event.worker] = event.label
        if self._study_bar is None:
            return
        if event.worker not in self._trial_bars:
            self._trial_bars[event.worker] = self._progress.add_task("", total=1, note="")
        bar, epochs = self._trial_bars[event.worker], event.strategy.epochs
        why = f"preset {event.preset}" if event.preset else (event.predicted or {}).get("reason", "")
        self._newest[event.worker] += f"  ({why})" if why else ""
        self._progress.reset(bar, total=epochs, description=f"trial {event.number}", note=self._newest[event.worker])

    def _trial_ended(self, event: TrialEnded) -> None:
        """Print the trial's line and advance the bar of trials."""
        score = f"{self._metric} {event.score:.4f}" if event.score is not None else ""
        resumed = f"resumes trial {event.continues}" if event.continues is not None else ""
        preset = f"preset {event.preset}" if event.preset and not event.reason else ""
        note = ", ".join(filter(None, (resumed, event.chosen, event.reason, preset)))
        label = self._labels.pop(event.number, "")
        row = Text.assemble(
            f"trial {event.number:>3}  ", (f"{event.outcome:<8}", ENDINGS[event.outcome].style), f"  {score:<16}  "
        )
        self._print(row.append(f"{event.seconds:6.1f} s  {label}" + (f"  ({note})" if note else "")))
        if self._study_bar is not None:
            # A trial that resumes another is not counted again: the paused one was.
            counts = 0 if event.continues is not None else 1
            self._progress.advance(self._study_bar, counts)
            if event.best is not None:
                self._best += [(time.monotonic(), event.best)]
                shown = curve(self._best)
                self._progress.update(self._study_bar, note=f"best {self._metric} {event.best:.4f}  {shown}".rstrip())
            # There is a bar before the trials begin, while images are read.
            left = self._left.trial_ended(time.monotonic(), counts) if self._left is not None else ""
            if left and not self._console.is_terminal:
                self.say(left)

    def worker_ended(self, worker: int) -> None:
        """Remove the progress bar of a worker that has ended."""
        if worker in self._trial_bars:
            self._progress.remove_task(self._trial_bars.pop(worker))

    def table(self, trials: Sequence[FrozenTrial], names: Sequence[str], count: int = 10) -> None:
        """Print the best strategies: rank, trial, score, the searched fields in which they differ, and seconds.

        Args:
            trials: From best to worst.
            names: Searched fields, the most important first; the first few that differ are shown.
            count: Rows at most.
        """
        shown = trials[:count]
        ranks = {"rank": [str(rank + 1) for rank in range(len(shown))]}
        title = f"Best strategies by validation {self._metric}"
        print_table(self._console, title, ranks | self._columns(shown, names), spare=names)

    def front(self, trials: Sequence[FrozenTrial], names: Sequence[str]) -> None:
        """Print the Pareto front: trial, score, the searched fields in which the trials differ, and costs."""
        objectives = " and ".join((self._metric, *self._costs)).replace("_", " ")
        print_table(
            self._console, f"Pareto front of validation {objectives}", self._columns(trials, names), spare=names
        )

    def _columns(self, trials: Sequence[FrozenTrial], names: Sequence[str]) -> dict[str, list[str]]:
        searched = {name: [_searched_value(trial, name) for trial in trials] for name in names}
        differing = [name for name, values in searched.items() if len(set(values)) > 1][:_MAX_FIELDS]
        costs: dict[str, list[str]] = {
            cost: [f"{trial.values[place]:{_COST_FORMATS[cost]}}" for trial in trials]
            for place, cost in enumerate(self._costs, start=1)
        }
        return {
            "trial": [str(trial.number) for trial in trials],
            self._metric: [f"{score_of(trial):.4f}" for trial in trials],
            **{name: searched[name] for name in names if name in differing},
            # All of a trial's time. The cost "seconds" is the training alone.
            "seconds": [f"{trial.duration.total_seconds():.1f}" if trial.duration else "" for trial in trials],
            **costs,
        }

    def importances(self, found: Importances) -> None:
        """Print the fields that stand out from chance with their shares, or why there are none."""
        self.say(found.headline)
        width = max(map(len, found.shares), default=0)
        for name, share in found.shares.items():
            self._console.print(f"  {name:<{width}} {share:4.0%}  {'█' * round(share * 30)}")

    def counts(self, trials: Sequence[FrozenTrial]) -> None:
        """Print the number of trials of each outcome, and the reason of each failed one."""
        outcomes = [outcome_of(trial) for trial in trials]
        parts = [f"{outcomes.count(o)} {o}" for o in ENDINGS if outcomes.count(o)]
        self.say("Trials: " + (", ".join(parts) or "none"))
        for trial in trials:
            if outcome_of(trial) == "failed":
                self.say(f"  trial {trial.number} failed: {trial.user_attrs.get(REASON, '')}")

    def winner(self, winner: Winner) -> None:
        """Print the winner's test score and its model's address."""
        if winner.confirmed:
            print_table(self._console, title_of(winner), columns_of(winner.confirmed))
        if len(winner.candidates) > 1:
            self._candidates(winner)
        trials = f"trial{'s' if len(winner.trials) > 1 else ''} {', '.join(map(str, winner.trials or (winner.trial,)))}"
        name = trials if winner.kind == TRIAL else f"{winner.kind} ({trials})"
        self.say(f"Winner: {name}, test {winner.metric} {winner.test_score:.4f} ({winner.interval})")
        if (found := winner.calibration) is not None:
            self.say(
                f"Calibration: temperature {found.temperature:.3g}, expected calibration error on the test images "
                f"{found.test_ece:.4f} -> {found.test_ece_calibrated:.4f}{winner.calibration_interval}"
            )
        self.say(f"Model:  {winner.model_uri}")

    def next_steps(self, disk: Sequence[str], commands: Sequence[str]) -> None:
        """Print the disk space that the search took, and commands for its results, in lines that can be pasted."""
        for line in (*disk, "Next:", *commands):
            self.say(line)

    def _candidates(self, winner: Winner) -> None:
        """Print the candidates that were scored on validation after the search; a star marks the winner."""
        table = Table(
            title="After the search, by validation", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        table.add_column("weights")
        table.add_column("of trials")
        table.add_column(winner.metric.replace("_", " "), justify="right")
        for one in winner.candidates:
            mark = " *" if one.kind == winner.kind else ""
            table.add_row(one.kind + mark, ", ".join(map(str, one.trials)), f"{one.score:.4f}")
        self._console.print(table)


def clock(seconds: float) -> str:
    """The time of day in so many seconds, with the weekday if that is not today."""
    now = datetime.now().astimezone()
    end = now + timedelta(seconds=min(seconds, 1e9))
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %H:%M}"


def curve(scores: Sequence[tuple[float, float]]) -> str:
    """Scores over time in one line of text; empty where they are all equal.

    Args:
        scores: Times and scores, in order.
    """
    low, high = min(score for _, score in scores), max(score for _, score in scores)
    (begin, _), (end, _) = scores[0], scores[-1]
    if not (end > begin and math.isfinite(low) and low < high < math.inf):
        return ""
    columns = min(_MOST_COLUMNS, len(scores))
    moments = [*(begin + (end - begin) * place / (columns - 1) for place in range(columns - 1)), end]
    last = [[score for time, score in scores if time <= moment][-1] for moment in moments]
    return "".join(_HEIGHTS[round((score - low) / (high - low) * (len(_HEIGHTS) - 1))] for score in last)


def title_of(winner: Winner) -> str:
    """The title of the table of strategies with new seeds."""
    seeds = counted(len(winner.confirmed[0].scores), "new seed")
    return f"The best with {seeds}, by their mean validation {winner.metric.replace('_', ' ')}"


def columns_of(confirmed: Sequence[Confirmed]) -> dict[str, list[str]]:
    """Strategies with new seeds, as columns of a table."""
    columns = {
        "trial": [str(one.trial) for one in confirmed],
        "in the search": [f"{one.searched:.4f}" for one in confirmed],
        "mean": ["" if one.mean is None else f"{one.mean:.4f}" for one in confirmed],
    }
    columns |= {
        "95% interval over seeds": [_from_to(one.low, one.high, "") for one in confirmed],
        "from the search's best": ["" if one.difference is None else f"{one.difference:+.4f}" for one in confirmed],
        "95% interval, paired by seed": [_from_to(one.difference_low, one.difference_high, "+") for one in confirmed],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if any(one.mean is None for one in confirmed):
        columns["failed"] = [str(one.scores.count(None)) for one in confirmed]
    return columns


def _from_to(low: float | None, high: float | None, sign: str) -> str:
    return "" if low is None or high is None else f"{low:{sign}.4f} to {high:{sign}.4f}"


def _searched_value(trial: FrozenTrial, name: str) -> str:
    """A field's value in a table; empty where the trial did not draw it."""
    if name not in trial.params:
        return ""
    if name == MODEL:
        value = trial.params[MODEL]
    elif name == "depth":
        value = trial.user_attrs[DEPTH]
    else:
        value = trial.user_attrs[STRATEGY][name]
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("_", " ")


def widened(console: Console) -> Console:
    """The console, with the width of a wide terminal if it writes to a file or a pipe."""
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def print_table(
    console: Console,
    title: str,
    columns: Mapping[str, Sequence[str]],
    verbatim: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """Print a table by its columns; its words and numbers are never cut, however narrow the terminal.

    Args:
        console: Where to print.
        title: The line above.
        columns: Cells by heading.
        verbatim: Whether headings keep their underscores, to be pasted into a command.
        spare: Columns that are left out, the last first, where the terminal is too narrow for all; a line names them.
    """
    # rich would break a table's own title at the width of a narrow table.
    console.print(escape(title), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    # Spelled out here already, since control characters have no width.
    texts = {
        name: [printable(cell) for cell in (name if verbatim else name.replace("_", " "), *cells)]
        for name, cells in columns.items()
    }
    # Spaces let a narrow terminal break headings and names in two lines.
    widths = {name: max(map(cell_len, " ".join(cells).split())) for name, cells in texts.items()}
    left_out: list[str] = []
    for name in reversed([name for name in columns if name in spare]):
        if console.is_terminal and _width_of(widths) > console.width:
            left_out.insert(0, name)
            del widths[name]
    # What room is left keeps headings in one line, from the first column on. rich alone would make columns of least
    # widths wider than the terminal.
    room = max(0, console.width - _width_of(widths))
    for name, least in widths.items():
        width = min(max(map(cell_len, texts[name])), least + room)
        room -= width - least
        table.add_column(escape(texts[name][0]), justify="right", width=width)
    for row in zip(*(texts[name][1:] for name in widths), strict=True):
        table.add_row(*map(escape, row))
    before = console.width
    # The terminal breaks lines that are still too wide; rich would cut words.
    console.width = max(before, _width_of(widths))
    console.print(table, crop=False)
    console.width = before
    if left_out:
        names = ", ".join(left_out)
        console.print(fitted(f"Not shown, as the terminal is too narrow: {escape(names)}", before), soft_wrap=True)


def _width_of(widths: Mapping[str, int]) -> int:
    # Three spaces between two columns, and one at each end.
    return sum(width + 3 for width in widths.values()) - 1
