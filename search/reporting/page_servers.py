"""Servers of MLflow's pages and of Optuna's dashboard, for the stores of a study."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO
from urllib.error import URLError

from search.processes import with_this_package
from strategies import ConfigError

# Only this machine can open the pages.
_HOST = "127.0.0.1"
# MLflow imports for some ten seconds, and makes or migrates tables.
_START_SECONDS = 120.0

# The addresses of stores go by variable: they may hold passwords, and command lines can be read by everybody.
_MLFLOW = """
from search.processes import end_with_input
end_with_input()
from mlflow.cli import cli
cli()
"""
_OPTUNA = """
import os, sys
from search.processes import end_with_input
end_with_input()
from optuna_dashboard import run_server
from search.storage.optuna_storage import open_storage
run_server(open_storage(os.environ["UNFREEZE_STORE"]), sys.argv[1], int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class PageServer:
    """A process that serves pages on this machine.

    Args:
        name: ``MLflow`` or ``Optuna``.
        address: The pages' URL.
        process: The server.
        log: The server's output.
    """

    name: str
    address: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]


def free_port(wanted: int, key: str | None) -> int:
    """A port of this machine: the wanted one, or any free one where the user named none.

    Args:
        wanted: The port.
        key: The option by which the user named it; None where it is the usual port.

    Raises:
        ConfigError: The port that the user named is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            if key is not None:
                raise ConfigError(f"{key}: port {wanted} is taken") from error
            probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def serve_mlflow(uri: str, port: int) -> PageServer:
    """Start MLflow's pages for a store."""
    words = ["-c", _MLFLOW, "server", "--host", _HOST, "--port", str(port), "--workers", "1"]
    # Jobs would need six more processes and a folder in memory that stays; the pages of a search have none.
    variables = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return _served("MLflow", port, words, variables)


def serve_optuna(url: str, port: int) -> PageServer:
    """Start Optuna's dashboard for a store."""
    return _served("Optuna", port, ["-c", _OPTUNA, _HOST, str(port)], {"UNFREEZE_STORE": url})


def _served(name: str, port: int, words: Sequence[str], variables: Mapping[str, str]) -> PageServer:
    log = tempfile.TemporaryFile()  # noqa: SIM115, it is open as long as the server runs
    process = subprocess.Popen(
        [sys.executable, "-P", *words],
        env={**os.environ, "PYTHONPATH": with_this_package(), **variables},
        # It ends when this process has ended, however that was.
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        # A process group of its own: Ctrl-C does not reach it, and end_servers ends its children too.
        start_new_session=True,
    )
    return PageServer(name, f"http://{_HOST}:{port}", process, log)


def wait_until_served(server: PageServer) -> None:
    """Wait until a server answers.

    Raises:
        ConfigError: Its process has ended, or it does not answer in two minutes.
    """
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise ConfigError(f"{server.name} cannot be served: {last_line(server)}")
        with suppress(URLError, OSError), urllib.request.urlopen(server.address, timeout=5):
            return
        time.sleep(0.2)
    raise ConfigError(f"{server.name} does not answer at {server.address}")


def last_line(server: PageServer) -> str:
    """The last line of a server's output, or its exit code."""
    server.log.seek(0)
    lines = server.log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {server.process.returncode}"


def end_servers(servers: Sequence[PageServer]) -> None:
    """End servers with all processes that they started."""
    for server in servers:
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGTERM)
    for server in servers:
        try:
            server.process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
