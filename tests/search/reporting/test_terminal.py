import io
import math
import os
import pty
import re
from contextlib import suppress
from dataclasses import replace

import optuna
import pytest
from copies import copies
from optuna.trial import TrialState
from rich.console import Console

from search.reporting import Terminal, print_table
from search.reporting.importance import Importances
from search.reporting.terminal import curve
from search.reporting.time_left import TimeLeft
from search.storage import DEPTH, OUTCOME, PRESET, REASON, STRATEGY
from search.tracking import EpochEnded, TrialEnded, TrialStarted
from search.winner import Winner
from search.winner.winner import Calibration, Candidate
from strategies import Strategy, parse_space, sample
from trainers import EpochResult

LABEL = "depth 2 · adamw 1e-03"


class Screen:
    """A terminal of 80 columns, or a log file, and what was printed to it."""

    def __init__(self, is_terminal: bool) -> None:
        self.file = io.StringIO()
        width = 80 if is_terminal else None
        console = Console(file=self.file, force_terminal=is_terminal, width=width, highlight=False)
        self.terminal = Terminal("accuracy", console)

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines()]


@pytest.fixture
def log() -> Screen:
    return Screen(is_terminal=False)


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


SPACE = parse_space(
    {
        "depth": 2,
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "loss": {"choices": ["label_smoothing", "focal"]},
        "epochs": {"choices": [5]},
    }
)


def add(study, state=TrialState.COMPLETE, value=None, params=None, **attrs):
    """A trial as run_trial leaves it."""
    study.enqueue_trial(params or {}, user_attrs=attrs)
    trial = study.ask()
    trial.set_user_attr(STRATEGY, sample(SPACE, trial).to_dict())
    trial.set_user_attr(DEPTH, 2)
    return study.tell(trial, value, state=state)


def begin(terminal):
    """Begin trial 0, and end its first epoch."""
    started = TrialStarted(
        0, "key", Strategy(epochs=2), LABEL, "resnet18", "none", "0", depth=4, seed=0, fingerprint="f"
    )
    terminal.hear(started)
    terminal.hear(EpochEnded(0, "key", EpochResult(1, {}, 0.1), 0.5, 0.1))


def test_a_log_gets_one_plain_line_a_trial_with_outcome_score_and_label(log, study):
    with log.terminal as terminal:
        terminal.study_started(0, 2)
        begin(terminal)
        terminal.hear(TrialEnded.of(add(study, value=0.9125, **{PRESET: "last_block"}), "key", 0.9125))
    (line,) = log.lines
    assert line.startswith("trial   0  complete  accuracy 0.9125")
    assert line.endswith(f" s  {LABEL}  (preset last_block)")
    assert "\x1b" not in log.text


def test_a_failed_trial_shows_its_reason_whatever_characters_it_has(log, study):
    reason = "RuntimeError: shape [3, 4] is no [bold]match[/bold] " + "x" * 300
    failed = add(study, TrialState.FAIL, **{OUTCOME: "failed", REASON: reason})
    log.terminal.hear(TrialEnded.of(failed, "key"))
    log.terminal.counts([failed])
    assert len(log.lines[0]) > 300
    assert f"({reason})" in log.lines[0]
    assert "Trials: 1 failed" in log.lines
    assert "shape [3, 4] is no [bold]match[/bold]" in log.text.split("Trials:")[1]


def test_a_trial_without_a_score_shows_none(log, study):
    trial = add(study, TrialState.PRUNED)
    log.terminal.hear(TrialEnded.of(trial, "key"))
    assert "pruned" in log.text
    assert "accuracy" not in log.text


def test_a_terminal_gets_bars_that_are_gone_at_the_end(study):
    screen = Screen(is_terminal=True)
    with screen.terminal as terminal:
        terminal.reading("decoding images", 1, 2)
        terminal.study_started(0, 2)
        begin(terminal)
        terminal.hear(TrialEnded.of(add(study, value=0.9), "key", 0.9))
    assert "\x1b" in screen.text
    assert "complete" in screen.text


def test_the_table_ranks_trials_by_the_fields_in_which_they_differ(log, study):
    best = add(study, value=0.9, params={"lr": 0.00123, "loss": "label_smoothing"})
    second = add(study, value=0.8, params={"lr": 0.02, "loss": "focal"})
    log.terminal.table([best, second], ["lr", "loss", "epochs"])
    rows = [line.split() for line in log.lines]
    assert log.lines[0] == "Best strategies by validation accuracy"
    assert ["rank", "trial", "accuracy", "lr", "loss", "seconds"] in rows
    assert next(row for row in rows if row[:1] == ["1"])[:6] == ["1", "0", "0.9000", "0.00123", "label", "smoothing"]
    assert next(row for row in rows if row[:1] == ["2"])[:5] == ["2", "1", "0.8000", "0.02", "focal"]


def test_of_a_large_space_the_table_shows_the_first_fields(log, study):
    names = ["crop_area", "flip", "colour", "saturation", "erase", "mixup", "cutmix", "dropout", "ema", "warmup_lr"]
    pair = [
        optuna.trial.create_trial(
            value=value,
            params=dict.fromkeys(names, value),
            distributions=dict.fromkeys(names, optuna.distributions.FloatDistribution(0, 1)),
            user_attrs={STRATEGY: dict.fromkeys(names, value), DEPTH: 2},
        )
        for value in (0.9, 0.8)
    ]
    log.terminal.table(pair, names)
    header = next(line.split() for line in log.lines if line.split()[:1] == ["rank"])
    shown = " ".join(names[:8]).replace("_", " ").split()
    assert header == ["rank", "trial", "accuracy", *shown, "seconds"]


def test_the_table_shows_ten_trials_at_most(log, study):
    trials = [add(study, value=1 - k / 100) for k in range(12)]
    log.terminal.table(trials, [])
    ranks = [line.split()[0] for line in log.lines if line.strip()[:1].isdigit()]
    assert ranks == [str(rank) for rank in range(1, 11)]


def test_counts_name_each_outcome_once(log, study):
    trials = [add(study, value=1.0), add(study, value=0.5), add(study, TrialState.PRUNED)]
    trials += [add(study, TrialState.FAIL, **{OUTCOME: "killed", REASON: "interrupted"})]
    log.terminal.counts(trials)
    assert log.lines == ["Trials: 2 complete, 1 pruned, 1 killed"]


def test_fields_that_mattered_are_listed_with_what_chance_reaches_or_a_word_on_why_there_are_none(log):
    log.terminal.importances(Importances(9, {}, None, "20 complete ones are needed"))
    log.terminal.importances(Importances(30, {}, 0.3, ""))
    log.terminal.importances(Importances(30, {"lr": 0.75, "depth": 0.35}, 0.3, ""))
    assert log.lines[0] == "Which fields mattered: cannot be told from 9 trials (20 complete ones are needed)."
    assert log.lines[1] == "Which fields mattered: none stands out from chance in 30 trials."
    assert "chance reaches 30%" in log.lines[2]
    assert log.lines[3].split()[:2] == ["lr", "75%"]
    assert log.lines[4].split()[:2] == ["depth", "35%"]


def test_the_end_tells_score_interval_model_and_what_to_do_next_on_lines_that_can_be_copied():
    screen = Screen(is_terminal=True)
    command = "python -m search.report pets store.url=sqlite:////" + "deep/" * 30 + "optuna.db"
    winner = Winner(4, "accuracy", 0.95, 0.91, 0.98, 360, "models:/m-0123456789abcdef")
    screen.terminal.winner(winner)
    screen.terminal.next_steps(["Disk:   1.0 MiB"], [command])
    assert "Winner: trial 4, test accuracy 0.9500 (95% interval 0.9100 to 0.9800 over 360" in screen.text
    assert "Model:  models:/m-0123456789abcdef" in screen.lines
    assert screen.lines[-3:] == ["Disk:   1.0 MiB", "Next:", command]


def test_what_was_mixed_is_a_table_with_a_star_at_the_winner_and_calibration_a_line(log):
    candidates = (
        Candidate("trial", (4,), 0.9),
        Candidate("uniform_soup", (4, 1), 0.8),
        Candidate("greedy_soup", (4, 2), 0.95),
    )
    winner = Winner(4, "accuracy", 0.95, 0.91, 0.98, 360, "models:/m-0", "greedy_soup", (4, 2), candidates)
    log.terminal.winner(replace(winner, calibration=Calibration(1.523, 0.0834, 0.0219, 0.01, 0.03)))
    rows = [line.split() for line in log.lines]
    assert ["weights", "of", "trials", "accuracy"] in rows
    assert ["trial", "4", "0.9000"] in rows
    assert ["uniform_soup", "4,", "1", "0.8000"] in rows
    assert ["greedy_soup", "*", "4,", "2", "0.9500"] in rows
    assert any(line.startswith("Winner: greedy_soup (trials 4, 2), test accuracy 0.9500 (95%") for line in log.lines)
    error = "expected calibration error on the test images 0.0834 -> 0.0219"
    interval = "(95% interval of the true error 0.0100 to 0.0300 over 360 images)"
    assert f"Calibration: temperature 1.52, {error} {interval}" in log.lines


def test_a_table_that_is_wider_than_the_terminal_has_every_word_in_whole():
    console = Console(file=io.StringIO(), width=30)
    print_table(console, "Wide", {f"column_{place}": [f"value{place}"] for place in range(8)})
    text = console.file.getvalue()
    assert all(f"value{place}" in text for place in range(8))
    assert console.width == 30


def test_headings_of_several_words_take_the_room_that_there_is():
    columns = {"rank": ["1"], "layer_decay": ["0.5"], "weight_decay": ["6.15e-05"], "batch_norm": ["train"]}
    for width in range(33, 60):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        print_table(console, "Wide", columns, spare=("batch_norm",))
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "6.15e-05" in text
    assert "layer decay   weight decay   batch norm" in text


def test_a_terminal_that_is_too_narrow_for_a_table_gets_its_first_fields_and_the_names_of_the_others():
    fields = [f"field_{place}" for place in range(9)]
    columns = {"rank": ["1"], **{name: ["12345678"] for name in fields}, "seconds": ["1.0"]}
    screen = Screen(is_terminal=True)
    print_table(screen.terminal._console, "Wide", columns, spare=fields)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in screen.lines]
    header = next(line for line in lines if "rank" in line)
    assert header.split() == ["rank", *(word for k in range(5) for word in ("field", str(k))), "seconds"]
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "Not shown, as the terminal is too narrow: field_5, field_6, field_7, field_8"
    log = Screen(is_terminal=False)
    print_table(log.terminal._console, "Wide", columns, spare=fields)
    assert "Not shown" not in log.text


def test_the_size_of_a_download_is_said_once_and_its_bar_counts_megabytes(log):
    with log.terminal as terminal:
        for done in (0, 23_400_000, 46_800_000):
            terminal.downloading("downloading timm/resnet18.a1_in1k", done, 46_800_000)
    assert log.lines == ["downloading timm/resnet18.a1_in1k, 46.8 MB"]
    screen = Screen(is_terminal=True)
    with screen.terminal as terminal:
        terminal.downloading("downloading timm/resnet18.a1_in1k", 23_400_000, 46_800_000)
    assert "23/46" in screen.text


# Runs the command with a terminal, whose name comes first, as its three standard streams.
ON_TERMINAL = """
import os, sys
from search.run import main
terminal = os.open(sys.argv.pop(1), os.O_RDWR)
print("opened", flush=True)
for stream in range(3):
    os.dup2(terminal, stream)
os.close(terminal)
sys.exit(main())
"""


def test_on_a_terminal_a_warning_says_its_level_once(lab):
    ours, theirs = pty.openpty()
    arguments = [os.ttyname(theirs), f"study={lab.file}", "budget.trials=1"]
    process = copies().start(ON_TERMINAL, arguments, lab.folder, os.environ | {"COLUMNS": "200"})
    assert process.stdout.readline() == "opened\n"
    os.close(theirs)
    shown = b""
    # Where all others have closed a terminal, reading from it is an error instead of an end.
    with suppress(OSError):
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    (warned,) = [line for line in shown.decode().splitlines() if "random weights" in line]
    assert warned.count("WARNING") == 1
    assert "trainers.models.weights: model.weights: none" in warned


def test_the_time_left_follows_the_pace_of_trials_and_ends_with_the_hours():
    left = TimeLeft(began=100.0, trials=10, deadline=math.inf)
    assert left.in_words(150.0) == ""
    assert left.trial_ended(400.0) == ""
    # A trial took 300 s, so that ten end 3,000 s after the beginning.
    assert left.in_words(400.0) == "about 45 min left"
    assert left.in_words(1000.0) == "about 35 min left"
    assert left.trial_ended(700.0) == "2 trials in 10 min, about 40 min left"
    assert left.trial_ended(1000.0) == ""
    assert TimeLeft(0.0, math.inf, deadline=7500.0).in_words(0.0) == "about 2 h 05 min left"
    hours_first = TimeLeft(0.0, 10, deadline=60.0)
    hours_first.trial_ended(30.0)
    assert hours_first.in_words(30.0) == "about 30 s left"


def test_the_bar_of_trials_shows_the_time_left(study):
    screen = Screen(is_terminal=True)
    with screen.terminal as terminal:
        terminal.study_started(0, 2)
        begin(terminal)
        terminal.hear(TrialEnded.of(add(study, value=0.9), "key", 0.9))
        terminal._progress.refresh()
    assert re.search(r"about \d+ s left, until (\w{3} )?\d\d:\d\d", screen.text)


def test_the_best_score_is_a_curve_over_time_and_the_running_trial_says_why_it_was_chosen(study):
    assert curve([(0.0, 0.5), (10.0, 0.6), (20.0, 0.9)]) == "▁▃█"
    assert curve([(0.0, 0.5), (90.0, 0.5), (100.0, 0.9)]) == "▁▁█"
    assert curve([(0.0, 0.9), (10.0, 0.9)]) == curve([(0.0, 0.9)]) == curve([(0.0, 0.1), (1.0, math.inf)]) == ""
    assert len(curve([(float(k), k / 100) for k in range(100)])) == 16
    screen = Screen(is_terminal=True)
    screen.terminal._console.width = 160
    with screen.terminal as terminal:
        terminal.study_started(0, 3)
        started = TrialStarted(
            0, "key", Strategy(epochs=2), LABEL, "resnet18", "none", "0", depth=4, seed=0, fingerprint="f"
        )
        terminal.hear(replace(started, preset="half"))
        terminal._progress.refresh()
        terminal.hear(replace(started, number=1, predicted={"reason": "unlike the others"}))
        terminal._progress.refresh()
        for score in (0.5, 0.9):
            terminal.hear(TrialEnded.of(add(study, value=score), "key", score))
        terminal._progress.refresh()
    for shown in (f"{LABEL}  (preset half)", f"{LABEL}  (unlike the others)", "best accuracy 0.9000  ▁█"):
        assert shown in screen.text
