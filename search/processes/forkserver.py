"""Processes that begin with everything imported: forks of a copy of the command that has done nothing else.

Importing torch, timm and MLflow takes some ten seconds, which each worker would spend anew. The forkserver is a fork of
the command from before it has computed anything, and forks itself at each request. Without a forkserver (not on Linux,
or where the command has threads, which a fork would lack) processes are started as usual and import for themselves.

The standard library's forkserver is no faster from a request to the first line (median 1.0 to 3 times as long, 80 pairs
on a busy machine), and imports everything anew before its first process. It leaves session, variables and standard
streams to the child. When it is killed, its children live on and their exit codes are lost.
"""

import array
import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import threadpoolctl
import torch

from search.processes.imports import with_this_package

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST_REQUEST = 2**20

# The forkserver of this process; there is one at most.
_open: "list[Forkserver]" = []


class Copy:
    """A process that a forkserver has forked, with the part of :class:`subprocess.Popen` that is used.

    Args:
        pid: Process number; no other process gets it until the exit code has been taken.
        status: Gives the exit code.
        streams: Those of its standard streams that are pipes to this process.
    """

    def __init__(self, pid: int, status: socket.socket, streams: Mapping[str, IO[str]]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = (streams.get(name) for name in ("stdin", "stdout", "stderr"))
        self._status = status
        # Several threads may wait for the process.
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit code.

        Args:
            timeout: Seconds; None to wait for ever.

        Raises:
            subprocess.TimeoutExpired: The process still runs after that time.
        """
        if self.returncode is None and self._has_ended(timeout):
            with self._lock:
                if self.returncode is None:
                    self.returncode = self._taken_code()
        if self.returncode is None:
            assert timeout is not None, "without a timeout, the process has ended"
            raise subprocess.TimeoutExpired([str(self.pid)], timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, seconds: float | None) -> bool:
        # select() takes no descriptor beyond the 1,024th.
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        return bool(poll.poll(None if seconds is None else 1000 * seconds))

    def _taken_code(self) -> int:
        code = self._status.recv(64)
        if not code:
            # The forkserver was killed, and with it the only process that can take this one's exit code.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._status.close()
        return int(code) if code else -int(signal.SIGKILL)


class Forkserver:
    """A process that forks itself, as seen by the process that asks for forks.

    Args:
        channel: Socket to the forkserver, which ends when the socket is closed.
        pid: Process number of the forkserver.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel
        # A request and its answer belong together.
        self._lock = threading.Lock()

    def start(self, request: Mapping[str, Any], streams: tuple[str, ...]) -> Copy:
        """Start a process.

        Args:
            request: What the process is told; see :func:`serve`.
            streams: Those of ``stdin``, ``stdout`` and ``stderr`` that become pipes; the others stay as they are.

        Raises:
            OSError: The forkserver has ended.
        """
        ours, theirs = socket.socketpair()
        opened, passed = {}, [theirs.fileno()]
        for name in streams:
            reader, writer = os.pipe()
            mine, its = (writer, reader) if name == "stdin" else (reader, writer)
            opened[name] = os.fdopen(mine, "w" if name == "stdin" else "r", encoding="utf-8")
            passed.append(its)
        message = json.dumps({**request, "streams": streams}).encode()
        try:
            with self._lock:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))]
                self._channel.sendmsg([message], rights)
                answer = self._channel.recv(64)
            if not answer:
                raise BrokenPipeError("the forkserver has ended")
        except BaseException:
            # An answer that comes after a signal would be taken for the answer to the next request.
            self.close()
            ours.close()
            for stream in opened.values():
                stream.close()
            raise
        finally:
            theirs.close()
            for end in passed[1:]:
                os.close(end)
        return Copy(int(answer), ours, opened)

    def close(self) -> None:
        """Let the forkserver end; the processes that it has started go on."""
        # Other forks of this process have the channel too, and would keep it open.
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()


@contextmanager
def warm_forkserver(*, is_wanted: bool) -> Iterator[None]:
    """While the ``with`` block runs, have a forkserver where one is wanted and possible.

    To be opened by a process that has imported all that its forks need and has done nothing else yet.
    """
    if not is_wanted or _open or not _can_be_copied():
        yield
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for stream in (sys.stdout, sys.stderr):
        # Otherwise a fork would print its content again.
        stream.flush()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    pid = os.fork()
    if pid == 0:
        _live(theirs, before)
    theirs.close()
    _open.append(Forkserver(ours, pid))
    try:
        yield
    finally:
        _open.pop().close()
        os.waitpid(pid, 0)


def start_process(
    module: str, environment: Mapping[str, str], folder: str | None = None
) -> "subprocess.Popen[str] | Copy":
    """Start a module's ``main`` in a session of its own, with pipes for its standard input and output.

    Args:
        module: Such as ``search.worker``; ``python -m`` has to do the same.
        environment: Variables besides those of this process.
        folder: Working folder; None for that of this process.
    """
    variables = {**os.environ, "PYTHONPATH": with_this_package(), **environment}
    if _open and folder is None:
        request = {"module": module, "environment": variables, "folder": str(Path.cwd()), "leads": True}
        # Without an answer the forkserver was killed, and the process is started as usual.
        with suppress(OSError):
            return _open[0].start(request, ("stdin", "stdout"))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
        cwd=folder,
        # Ctrl-C in a terminal reaches its whole session; these processes are stopped by the one that started them.
        start_new_session=True,
    )


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork this process at each request; return the request in the fork, and None here once the channel is closed.

    Args:
        channel: Carries a JSON object a request, with the names of the ``streams`` that the fork gets, and optionally
            its ``environment``, its ``folder`` and whether it ``leads`` a session; with it come file descriptors: one
            for the exit code, and one for each stream.
    """
    # By descriptor: processes that run, with their number and the descriptor for the exit code; and processes that have
    # ended, whose exit code is not taken yet.
    running: dict[int, tuple[int, int]] = {}
    ended: dict[int, int] = {}
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        for file, _ in poll.poll():
            if file in running:
                pid, status = running.pop(file)
                poll.unregister(file)
                os.close(file)
                # It stays a zombie: no other process gets its number before its starter has read the exit code.
                result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert result is not None, "the process has ended"
                code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
                # Its starter may be gone.
                with suppress(OSError):
                    os.write(status, str(code).encode())
                ended[status] = pid
                poll.register(status, select.POLLIN)
            elif file in ended:
                os.waitpid(ended.pop(file), 0)
                poll.unregister(file)
                os.close(file)
            else:
                message, files, _, _ = socket.recv_fds(channel, _LONGEST_REQUEST, 4)
                if not message:
                    # Here, since whoever inherits zombies may leave them for a while.
                    for pid in ended.values():
                        os.waitpid(pid, 0)
                    return None
                request = dict(json.loads(message))
                statuses = [status for _, status in running.values()]
                pid = _copied(request, files, (*running, *statuses, *ended))
                if pid == 0:
                    channel.close()
                    return request
                watch = os.pidfd_open(pid)
                running[watch] = (pid, files[0])
                poll.register(watch, select.POLLIN)
                channel.send(str(pid).encode())


def _copied(request: Mapping[str, Any], files: Sequence[int], others: Sequence[int]) -> int:
    """Fork this process for a request; return the fork's number here, and 0 in the fork.

    Args:
        request: As in :func:`serve`.
        files: Descriptors for the exit code, which stays open here, and for the streams.
        others: Descriptors that the fork must close.
    """
    has_begun, begins = os.pipe()
    pid = os.fork()
    if pid:
        for file in (*files[1:], begins):
            os.close(file)
        # Ends once the fork leads its process group, which may be killed from now on.
        os.read(has_begun, 1)
        os.close(has_begun)
        return pid
    if request.get("leads"):
        os.setsid()
    for stream, name in zip(files[1:], request["streams"], strict=True):
        os.dup2(stream, ("stdin", "stdout", "stderr").index(name))
    for file in (has_begun, begins, *files, *others):
        os.close(file)
    _take_over(request)
    return 0


def _take_over(request: Mapping[str, Any]) -> None:
    """Take the variables and the folder of the request."""
    if "environment" in request:
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        # Libraries read the variable when they are loaded, and here they are loaded already.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdecimal():
            threadpoolctl.threadpool_limits(int(threads))
            torch.set_num_threads(int(threads))
    if "folder" in request:
        os.chdir(request["folder"])


def _end_as_python_does(work: Callable[[], Any]) -> None:
    """Do the work and end this process as the interpreter does, without a return to the caller."""
    code = 1
    try:
        code = work() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _can_be_copied() -> bool:
    """Whether a fork would lack nothing: it has neither the threads of this process nor the GPU driver's state."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open") or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    # OpenBLAS and jemalloc (of pyarrow) start threads when they are loaded, and handle a fork themselves.
    blas = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]
    allowed = 1 + sum(int(pool["num_threads"]) - 1 for pool in blas)
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    return sum(name != "jemalloc_bg_thd" for name in names) <= allowed


def _live(channel: socket.socket, handlers: Mapping[int, Any]) -> None:
    """Run as the forkserver, and in its forks run the module of the request; does not return."""

    def work() -> int:
        os.setsid()
        for number in _SIGNALS:
            # The forkserver lives as long as the command that opened it.
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        for file in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if file > 2 and file != channel.fileno():
                # The list holds the descriptor by which it was read, too.
                with suppress(OSError):
                    os.close(file)
        _open.clear()
        request = serve(channel)
        if request is None:
            os._exit(0)
        for which, handler in handlers.items():
            signal.signal(which, handler)
        # Lists of processes then show the module's name, not the command's.
        Path("/proc/self/comm").write_text(request["module"])
        return int(importlib.import_module(request["module"]).main() or 0)

    _end_as_python_does(work)
