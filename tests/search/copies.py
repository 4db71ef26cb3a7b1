"""Processes that begin with everything imported: copies of one that has done so once, which saves each some seconds.

As a script this is that one process. What it is asked for it forks into; a copy has its own folder, variables, output
and exit code, is signalled and killed like any process, and ends as Python ends.
"""

import array
import json
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
from typing import IO, Any

REPOSITORY = Path(__file__).resolve().parents[2]
_MODULES = ("search.run", "search.study", "search.rerun", "mlflow.pyfunc", "scipy.stats", "torchmetrics")
_LONGEST_REQUEST = 2**20


class Copy:
    """A process, with what tests need of :class:`subprocess.Popen`."""

    def __init__(self, pid: int, out: IO[str], err: IO[str], status: IO[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._out, self._err, self._status = out, err, status

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.returncode if self.returncode is not None else self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        code = self.returncode if self.returncode is not None else self._look(timeout)
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended in {timeout} s")
        return code

    def _look(self, seconds: float | None) -> int | None:
        # select() takes no descriptor beyond the 1,024th.
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        if poll.poll(None if seconds is None else 1000 * seconds):
            self.returncode = int(self._status.read())
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what was printed."""
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(stream.read) for stream in (self._out, self._err)]
            self.wait(timeout)
            out, err = (one.result(timeout) for one in both)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


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
        self._socket = ours

    def start(self, code: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Copy:
        """Run Python code in a folder, with these arguments and variables."""
        pipes = [os.pipe() for _ in range(3)]
        request = {"code": code, "arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
        ends = array.array("i", [write for _, write in pipes])
        self._socket.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
        for _, write in pipes:
            os.close(write)
        pid = int(self._socket.recv(64))
        out, err, status = (os.fdopen(read, encoding="utf-8") for read, _ in pipes)
        return Copy(pid, out, err, status)


@cache
def copies() -> Copies:
    """The one of this test process; it ends with it."""
    return Copies(*_MODULES)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork at each request; what it was asked for, in the copy, and None in the original once nobody asks any more."""
    running: dict[int, int] = {}
    channel.settimeout(0.01)
    while True:
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = running.pop(ended[0])
            # Whoever started it may not have waited for its end.
            with suppress(BrokenPipeError):
                os.write(status, str(os.waitstatus_to_exitcode(ended[1])).encode())
            os.close(status)
        try:
            message, ends, _, _ = socket.recv_fds(channel, _LONGEST_REQUEST, 3)
        except TimeoutError:
            continue
        if not message:
            return None
        pid = os.fork()
        out, err, status = ends
        if pid == 0:
            os.dup2(out, 1)
            os.dup2(err, 2)
            for end in (*ends, *running.values()):
                os.close(end)
            channel.close()
            return dict(json.loads(message))
        os.close(out)
        os.close(err)
        running[pid] = status
        channel.send(str(pid).encode())


def _become(request: Mapping[str, Any]) -> None:
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = ["-c", *request["arguments"]]
    # A shell may have started the tests with Ctrl-C switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(compile(request["code"], "<copy>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    import importlib

    for module in sys.argv[2:]:
        importlib.import_module(module)
    # A copy has this thread alone, and whatever the others held would be held for ever.
    assert threading.active_count() == 1, threading.enumerate()
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        _become(asked)
