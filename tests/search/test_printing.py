"""What people read holds names of files, classes and studies, which may try to command the terminal."""

import io
import logging
import os
import pty
import sys
from importlib import import_module
from pathlib import Path

import pytest

from search.command_line import LogFormatter, exit_code, say
from search.config import fitted, for_output, for_reading
from search.reporting import SafeConsole, Terminal, print_table
from search.run import help_text
from strategies import ConfigError

# A title for the window, a link, red, and the order of letters turned round.
RAW = "\x1b]0;title\x9c\x1b]8;;https://example.org\x9c\x1b[31m\x9b31m\u202egpj.exe"
PLAIN = r"\x1b]0;title\x9c\x1b]8;;https://example.org\x9c\x1b[31m\x9b31m\u202egpj.exe"


def test_an_error_and_its_traceback_are_printed_as_text(capsys):
    def refuse():
        raise ConfigError(f"{RAW} is no image")

    def fail():
        raise RuntimeError(RAW)

    assert exit_code(refuse) == 2
    assert exit_code(fail) == 1
    say("a\tb\nc \udcff")
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {PLAIN} is no image\nTraceback")
    assert printed.err.endswith(f"RuntimeError: {PLAIN}\n")
    assert printed.out == "a\tb\nc \\udcff\n"


def test_a_log_record_is_text():
    record = logging.LogRecord("trainers", logging.WARNING, "", 0, "%s", (RAW,), None)
    assert LogFormatter("%(name)s: %(message)s").format(record) == f"trainers: {PLAIN}"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_of_control_characters_a_console_prints_only_its_own(is_terminal):
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=is_terminal, width=300, highlight=False)
    with Terminal("accuracy", console) as terminal:
        terminal.reading(f"[red]{RAW}", 1, 2)
        terminal.say(f"[link=https://example.org]{RAW}")
        print_table(console, f"[red]{RAW}", {f"[b]{RAW}": [f"[link=https://example.org]{RAW}"]})
    text = file.getvalue()
    assert f"[link=https://example.org]{PLAIN}\n" in text
    assert text.count(PLAIN) >= 4
    assert ("\x1b" in text) == is_terminal
    assert not any(part in text for part in ("\x1b]", "\x1b[31m", "\x9b", "\u202e"))


def test_data_is_changed_on_a_terminal_alone(monkeypatch, tmp_path):
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert for_output(RAW) == RAW
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert for_output(RAW) == PLAIN
    os.close(ours)


def test_lines_for_a_terminal_are_broken_between_words_below_their_second_column():
    long = "Study   pets: 12 trials so far, CPU"
    assert fitted(long, 80) == long
    assert fitted(long, 24) == "Study   pets: 12 trials\n        so far, CPU"
    assert fitted("a word and  more", 12) == "a word and\nmore"
    # Addresses and commands stay whole.
    command = "  python -m search.predict pets photos/  # the answers"
    assert fitted(command, 20) == command
    assert fitted("see https://example.org/long/address", 20) == "see\nhttps://example.org/long/address"


def test_help_is_as_wide_as_the_terminal_that_reads_it(monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        shown = for_reading(help_text())
    os.close(ours)
    assert all(len(line) <= 80 or line.startswith("  python -m ") for line in shown.splitlines())
    assert "  -m, --multirun   run every combination of key=a,b and key=range(1,4), one\n" + " " * 19 + "after" in shown
    with Path(os.devnull).open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert for_reading(help_text()) == help_text()


@pytest.mark.parametrize("module", ["search.export", "search.nightly", "search.ui"])
def test_what_follows_the_options_is_as_wide_as_the_terminal_too(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        import_module(module).main(["--help"])
    _, _, epilog = capsys.readouterr().out.rpartition("\n  -")
    lines = epilog.splitlines()
    assert max(map(len, lines)) <= 80
    # Of a paragraph all lines but the last are full.
    assert [line for line in lines if len(line) > 60]
    if module == "search.export":
        assert "  .onnx     for ONNX Runtime and others (pip install -e '.[onnx]')" in lines
