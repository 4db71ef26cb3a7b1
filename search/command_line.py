"""What every command does around its work: exit codes, and errors in one line."""

import logging
import os
import re
import sys
import traceback
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from search.config import fitted, printable
from strategies import ConfigError, UnfreezeError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


_RESUME = "the same command resumes the study"
# Ends of lines within a paragraph; indented lines are those of a list.
_WITHIN_PARAGRAPHS = re.compile(r"(?<=[^\n:])\n(?=\S)")


class HelpFormatter(RawDescriptionHelpFormatter):
    """Help whose paragraphs are as wide as the terminal, and whose lists stay lists."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fitted(_WITHIN_PARAGRAPHS.sub(" ", text), width)


# Set by the shell's code for completion, which argcomplete writes.
_SHELL_ASKS = "_ARGCOMPLETE"


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that takes whole numbers from ``low`` to ``high``, for argparse."""

    def read(word: str) -> int:
        # Longer words are numbers that Python may refuse to read.
        if not re.fullmatch(r"[+-]?\d{1,18}", word, re.ASCII) or not low <= int(word) <= high:
            raise ArgumentTypeError(f"{word[:40]!r} is not a whole number from {low} to {high}")
        return int(word)

    return read


#: The type of an option that takes a port.
port_number = whole_number(1, 65535)


def is_asked_by_shell() -> bool:
    """Whether a shell has called this process to be told which words could be typed next."""
    return _SHELL_ASKS in os.environ


def read_words(parser: ArgumentParser, words: Sequence[str] | None) -> Namespace:
    """Parse the words of a command; options may stand between the others.

    Args:
        parser: The command's parser.
        words: The words; None for those of this process.
    """
    answer_shell(parser)
    return parser.parse_intermixed_args(words)


def answer_shell(parser: ArgumentParser) -> None:
    """Where a shell asks which words could be typed next, print them and end the process; else do nothing."""
    if is_asked_by_shell():
        from argcomplete import autocomplete

        # A function will do; it is typed as a class of argcomplete's.
        completer: Any = _next_words
        # Options are named once a word begins with a dash: there are far more keys.
        autocomplete(parser, always_complete_options=False, default_completer=completer)


def _next_words(prefix: str, action: Action, **_: Any) -> Mapping[str, str] | Sequence[str]:
    """The words that can stand where an argument of a command is typed, with their help."""
    from argcomplete.completers import FilesCompleter

    from search.config import keys_to_set, studies_to_name, values_to_give

    files = FilesCompleter()
    takes = f"{action.metavar or action.dest}"
    key, equals, value = prefix.partition("=")
    if equals:
        found = values_to_give(key) or files(value)
        return [f"{key}={word}" for word in found]
    words = studies_to_name() if "STUDY" in takes or takes == "MODEL" else {}
    if "=" in takes or takes == "overrides":
        # Where studies are named, there are hundreds of keys that are hardly ever meant.
        words |= keys_to_set() if prefix or not words else {}
    if takes.lower() in ("file", "folder", "images", "model", "out", "path", "table"):
        words |= dict.fromkeys(files(prefix), "")
    return words


def check_output(option: str, file: Path) -> None:
    """Refuse a file that a command could not write at its end; nothing is left where there was no file.

    Args:
        option: The option that names the file.
        file: The file.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        with file.open("xb"):
            pass
        file.unlink()
    except FileExistsError:
        try:
            with file.open("ab"):
                pass
        except OSError as error:
            raise unwritable(option, file, error) from error
    except (OSError, ValueError) as error:
        raise unwritable(option, file, error) from error


def unwritable(option: str, file: Path, error: Exception) -> ConfigError:
    """The error for a file that cannot be written."""
    return ConfigError(f"{option}: {str(file)[:300]!r} cannot be written: {getattr(error, 'strerror', None) or error}")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line for people, to the standard output by default."""
    print(printable(text), file=file, flush=True)


class LogFormatter(logging.Formatter):
    """Formats messages for a terminal or a log file, whatever is in them."""

    def format(self, record: logging.LogRecord) -> str:
        """As usual, with control characters spelled out."""
        return printable(super().format(record))


def set_up_logging(force: bool = False) -> None:
    """Log warnings and errors to the standard error.

    Args:
        force: Whether to replace handlers that are there already.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=force)


def report_fault(error: Exception, label: str = "") -> None:
    """Print an error that is no bad input: one line for a full disk, which a user can mend, else a traceback.

    Args:
        error: The error.
        label: Begins the line.
    """
    from search.storage import is_no_room, reason_of

    if is_no_room(error):
        say(f"error: {label}{reason_of(error)}; make room, then run the same command again", sys.stderr)
    else:
        say("".join(traceback.format_exception(error)).rstrip(), sys.stderr)


def exit_code(work: Callable[[], int], resume: str = _RESUME) -> int:
    """Do the work; errors that a user can mend, and Ctrl-C, end in a message instead of a traceback.

    Args:
        work: Does the work and returns the exit code.
        resume: Printed after an interrupt: what is kept, and how to resume.

    Returns:
        The work's own code, 2 after bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 after any other error and when
        nobody reads the output any more.
    """
    try:
        return work()
    except UnfreezeError as error:
        say(f"error: {error}", sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader, such as head, has ended; Python's own flush at exit must not raise this again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        say(f"interrupted; {resume}", sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        # run_study turns SIGTERM into this, to unwind as after Ctrl-C.
        say(f"stopped by a signal; {resume}", sys.stderr)
        return int(stop.code or 0)
    except Exception as error:  # every error is printed
        report_fault(error)
        return FAILED
