"""Lines that a terminal shows without breaking words."""

import re
import shutil
import sys
import textwrap

_COMMAND = re.compile(r" *(python|unfreeze) ")
# A label or a first column, and the spaces behind it.
_COLUMN = re.compile(r" *\S.*? {2,}(?=\S)")


def fitted(text: str, width: int) -> str:
    """The text, with each line that is wider than the terminal broken between words.

    What follows is indented to where the line's second column begins, as in ``Data    1,797 images``, which two spaces
    or more separate. Commands, and words that are wider than the terminal, stay whole, so that they can be copied.

    Args:
        text: Lines.
        width: Columns of the terminal.
    """
    return "\n".join(_broken(line, width) if len(line) > width else line for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if _COMMAND.match(line):
        return line
    column = _COLUMN.match(line)
    indent = len(line) - len(line.lstrip())
    if column is not None and len(column[0]) <= width // 2:
        indent = len(column[0])
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )


def for_reading(text: str) -> str:
    """Text for the standard output: fitted to a terminal, unchanged in a file or a pipe."""
    return fitted(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text
