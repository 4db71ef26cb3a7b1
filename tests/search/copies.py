"""Processes that begin with everything imported: copies of one that has done so once, which saves each some seconds.

As a script this is that one process. What it is asked for it forks into; a copy has its own folder, variables, output
and exit code, is signalled and killed like any process, and runs what Python runs at its end.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from search.processes.forkserver import Copy, Forkserver, _end_as_python_does, serve

REPOSITORY = Path(__file__).resolve().parents[2]
# What a study imports from its start to its end, and what the tests' servers do.
_MODULES = (
    "search.run",
    "search.study.lifecycle",
    "search.rerun",
    "alembic.command",
    "git",
    "IPython.display",
    "matplotlib.backends.backend_agg",
    "mlflow.models.display_utils",
    "mlflow.pyfunc",
    "mlflow.pyfunc.scoring_server",
    "mlflow.server",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracing.export",
    "mlflow.tracing.processor.otel",
    "plotly.graph_objects",
    "scipy.stats",
    "sklearn.datasets",
    "timm.optim",
    "timm.scheduler",
    "torchmetrics",
    "werkzeug.serving",
)


class Started:
    """A process, with what tests need of :class:`subprocess.Popen`."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._copy, name)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what was printed."""
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(stream.read) for stream in (self._copy.stdout, self._copy.stderr)]
            self._copy.wait(timeout)
            out, err = (one.result(timeout) for one in both)
        return out, err


class Copies:
    """The process that is copied.

    Args:
        modules: What it imports.
    """

    def __init__(self, *modules: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *modules], pass_fds=[theirs.fileno()], env=environment
        )
        theirs.close()
        self._nursery = Forkserver(ours, self._process.pid)

    def start(self, code: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Started:
        """Run Python code in a folder, with these arguments and variables."""
        request = {"code": code, "arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
        return Started(self._nursery.start(request, ("stdout", "stderr")))


@cache
def copies() -> Copies:
    """The one of this test process; it ends with it."""
    return Copies(*_MODULES)


def _become(request: Mapping[str, Any]) -> None:
    sys.argv = ["-c", *request["arguments"]]
    # A shell may have started the tests with Ctrl-C switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(compile(request["code"], "<copy>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    import gc
    import importlib

    from migrations import read_once
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
    from sqlalchemy.orm import configure_mappers

    for module in sys.argv[2:]:
        importlib.import_module(module)
    # Whoever logs a model has MLflow read the lists of files of all installed packages, once a process.
    warn_dependency_requirement_mismatches(["mlflow"])
    configure_mappers()
    read_once()
    # A copy has this thread alone, and whatever the others held would be held for ever.
    assert threading.active_count() == 1, threading.enumerate()
    # Else a copy's garbage collections would look at all that was imported, and so copy its memory.
    gc.collect()
    gc.freeze()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        # Python itself would take modules apart for some 3 s of a core.
        _end_as_python_does(lambda: _become(asked))
