"""How a new Python process is started that imports our packages."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def fresh_python(words: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command and the variables of a process that has our packages from where this process has them.

    It does not look into the current folder, where a file of the user's may have the name of one of our packages.

    Args:
        words: What follows ``python``, such as ``["-m", "search.worker"]``.
        environment: Variables besides those of this process.
    """
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-P", *words], {**os.environ, "PYTHONPATH": paths, **environment}
