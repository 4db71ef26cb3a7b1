"""Processes that begin with everything imported: copies of one that has done so once, which saves each some seconds.

As a script this is that one process, which all processes of a run of the tests share. For each of them it has a fork,
which forks into what it is asked for. A copy has its own folder, variables, output and exit code, is signalled and
killed like any process, and runs what Python runs at its end.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    """The process that is copied, started unless another process of this run of the tests has started it.

    Args:
        modules: What it imports.
    """

    def __init__(self, *modules: str) -> None:
        # The tests' processes of one run share an address.
        address = f"\0unfreeze-copies-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
        kind = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = socket.socket(*kind)
        with socket.socket(*kind) as listener:
            # Where the address is taken, another process has started it, or is about to.
            with suppress(OSError):
                listener.bind(address)
                listener.listen()
                environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
                environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, str(listener.fileno()), *modules]
                self._process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment)
            _connect(channel, address)
        self._nursery = Forkserver(channel, 0)

    def start(self, code: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Started:
        """Run Python code in a folder, with these arguments and variables."""
        request = {"code": code, "arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
        return Started(self._nursery.start(request, ("stdout", "stderr")))


@cache
def copies() -> Copies:
    """The one of this run; it ends with the last process that has asked for it."""
    return Copies(*_MODULES)


def _connect(channel: socket.socket, address: str) -> None:
    """Connect, perhaps after a moment: who has just taken the address may not listen yet."""
    end = time.monotonic() + 60
    while True:
        try:
            return channel.connect(address)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _become(request: Mapping[str, Any]) -> None:
    sys.argv = ["-c", *request["arguments"]]
    # A shell may have started the tests with Ctrl-C switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(compile(request["code"], "<copy>", "exec"), {"__name__": "__main__"})


def _channel(listener: socket.socket) -> socket.socket:
    """Fork for each process that connects, and return its channel in the fork; without any such fork, end."""
    poll, forks = select.poll(), dict[int, int]()
    poll.register(listener, select.POLLIN)
    while True:
        for file, _ in poll.poll():
            if file in forks:
                poll.unregister(file)
                os.waitpid(forks.pop(file), 0)
                os.close(file)
                if not forks:
                    os._exit(0)
                continue
            channel, _ = listener.accept()
            pid = os.fork()
            if pid == 0:
                listener.close()
                for other in forks:
                    os.close(other)
                return channel
            channel.close()
            ended = os.pidfd_open(pid)
            forks[ended] = pid
            poll.register(ended, select.POLLIN)


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
    asked = serve(_channel(socket.socket(fileno=int(sys.argv[1]))))
    # Python itself would take modules apart for some 3 s of a core.
    if asked is None:
        os._exit(0)
    _end_as_python_does(lambda: _become(asked))
