"""What every command does around its work: exit codes, and faults said in one line."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from strategies import UnfreezeError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


_GO_ON = "the same command continues the study"


def in_words(value: Any) -> str:
    """A default as it would be written on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_words, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"


def report_fault(error: Exception, label: str = "") -> None:
    """Print what went wrong that is no bad input: one line of a full disk, which a user can mend, else a traceback.

    Args:
        error: It.
        label: What the line begins with.
    """
    from search.storage import is_no_room, reason_of

    if is_no_room(error):
        print(f"error: {label}{reason_of(error)}; make room, then run the same command again", file=sys.stderr)
    else:
        traceback.print_exception(error)


def exit_code(work: Callable[[], int], go_on: str = _GO_ON) -> int:
    """Do the work; what a user can mend or has asked for (Ctrl-C) ends in a message instead of a traceback.

    Args:
        work: Returns the exit code.
        go_on: What is said of an interrupt.

    Returns:
        The work's own code, 2 after bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 after any other error and when
        nobody reads the output any more.
    """
    try:
        return work()
    except UnfreezeError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python's own flush at exit must not complain of it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {go_on}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        # run_study turns SIGTERM into this, to unwind as after Ctrl-C.
        print(f"stopped by a signal; {go_on}", file=sys.stderr)
        return int(stop.code or 0)
    except Exception as error:  # whatever it is, it is said
        report_fault(error)
        return FAILED
