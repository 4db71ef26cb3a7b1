"""How this program's commands are called, for texts that a user copies."""

import sys
from pathlib import Path

#: The console script.
SCRIPT = "unfreeze"


def spelled(command: str) -> str:
    """A command as this process was called: ``unfreeze report``, or ``python -m search.report``."""
    called = Path(sys.argv[0]).stem if sys.argv else ""
    return f"{SCRIPT} {command}" if called == SCRIPT else f"python -m search.{command}"
