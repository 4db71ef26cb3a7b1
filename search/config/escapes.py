"""Text for a terminal: names of files, classes and studies may hold characters that command the terminal."""

import re
import sys

# Control characters but tab and line feed, marks that turn the direction of a line, and bytes that are no UTF-8.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with control characters spelled out, such as ``\x1b`` for escape."""
    return _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def for_output(text: str) -> str:
    """Data for the standard output: printable on a terminal, unchanged in a file or a pipe."""
    return printable(text) if sys.stdout.isatty() else text
