"""The pages on which a search can be looked at: ``python -m search.ui [STUDY]``."""

import argparse
import importlib.util
import logging
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
from typing import IO, TYPE_CHECKING
from urllib.error import URLError

from search.command_line import FAILED, exit_code
from strategies import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

HOST = "127.0.0.1"
_MLFLOW_PORT, _OPTUNA_PORT = 5000, 8080
# MLflow imports for some ten seconds, and makes or migrates tables.
_START_SECONDS = 120.0

_USAGE = """\
The study, named as for search.run, says where its stores are; else tracking.uri=... and store.url=... do, or those of
the working folder are shown. Pages are served to this machine alone; Ctrl-C ends them.

Optuna's pages are served where optuna-dashboard is installed (pip install optuna-dashboard)."""

# The addresses of stores go by variable: they may hold passwords, and command lines can be read by everybody.
_MLFLOW = "from mlflow.cli import cli; cli()"
_OPTUNA = """
import os, sys
from optuna_dashboard import run_server
from search.storage.optuna_storage import open_storage
run_server(open_storage(os.environ["UNFREEZE_STORE"]), sys.argv[1], int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Page:
    """Something that is served.

    Args:
        name: What it is called.
        address: Where it is.
        process: Serves it.
        log: What that says.
    """

    name: str
    address: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]


def free_port(wanted: int, key: str | None) -> int:
    """A port of this machine: the wanted one, or where nobody insists on it any that is free.

    Args:
        wanted: The port.
        key: The option by which it was asked for; None where it is only the usual one.

    Raises:
        ConfigError: It is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError as error:
            if key is not None:
                raise ConfigError(f"{key}: port {wanted} is taken") from error
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def serve_mlflow(uri: str, port: int) -> Page:
    """Start MLflow's pages for a store."""
    words = ["-c", _MLFLOW, "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return _served("MLflow", port, words, {"MLFLOW_BACKEND_STORE_URI": uri})


def serve_optuna(url: str, port: int) -> Page:
    """Start Optuna's dashboard for a store."""
    return _served("Optuna", port, ["-c", _OPTUNA, HOST, str(port)], {"UNFREEZE_STORE": url})


def _served(name: str, port: int, words: Sequence[str], variables: Mapping[str, str]) -> Page:
    log = tempfile.TemporaryFile()  # noqa: SIM115, it is open as long as the page is
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, **variables},
        stdout=log,
        stderr=log,
        # With what it starts itself it is ended from here, and not by Ctrl-C.
        start_new_session=True,
    )
    return Page(name, f"http://{HOST}:{port}", process, log)


def wait_until_served(page: Page) -> None:
    """Wait until a page answers.

    Raises:
        ConfigError: Its process has ended, or it does not answer.
    """
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if page.process.poll() is not None:
            raise ConfigError(f"{page.name} cannot be served: {_last_line(page)}")
        with suppress(URLError, OSError), urllib.request.urlopen(page.address, timeout=5):
            return
        time.sleep(0.2)
    raise ConfigError(f"{page.name} does not answer at {page.address}")


def _last_line(page: Page) -> str:
    page.log.seek(0)
    lines = page.log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {page.process.returncode}"


def end(pages: Sequence[Page]) -> None:
    """End pages with all that serves them."""
    for page in pages:
        with suppress(ProcessLookupError):
            os.killpg(page.process.pid, signal.SIGTERM)
    for page in pages:
        try:
            page.process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(page.process.pid, signal.SIGKILL)
            page.process.wait()


def show(words: Sequence[str], ports: tuple[int | None, int | None]) -> int:
    """Serve the pages until a signal comes or one of them ends."""
    # Only here: they take seconds to import.
    from rich.console import Console

    from search.processes import stopped_by_signals
    from search.storage import absolute_sqlite, reachable, stores_of

    url, uri, studies = stores_of(words)
    console = Console(highlight=False)
    pages: list[Page] = []
    with stopped_by_signals():
        try:
            if uri.startswith(("http://", "https://")):
                _show_mlflow(uri, "  (a server of its own)", studies, console)
            else:
                port = free_port(ports[0] or _MLFLOW_PORT, "--port" if ports[0] else None)
                pages.append(serve_mlflow(reachable(uri), port))
            if importlib.util.find_spec("optuna_dashboard") is not None:
                port = free_port(ports[1] or _OPTUNA_PORT, "--optuna-port" if ports[1] else None)
                pages.append(serve_optuna(absolute_sqlite(url), port))
            return _keep(pages, studies, console)
        finally:
            end(pages)


def _show_mlflow(address: str, remark: str, studies: Sequence[str], console: "Console") -> None:
    """Print where MLflow is, and below it where it lists the trials of the studies that have begun."""
    from search.config import without_password
    from search.storage import reading_mlflow
    from search.tracking import page_of

    shown = without_password(address).rstrip("/")
    console.print(f"MLflow  {shown}{remark}", soft_wrap=True)
    try:
        with reading_mlflow(address, "the list of studies") as client:
            found = {study: client.get_experiment_by_name(study) for study in studies}
    except ConfigError as error:
        # Optuna's pages are there all the same.
        console.print(f"        {error}", soft_wrap=True)
        return
    for study, experiment in found.items():
        if experiment is not None:
            console.print(f"        {study}: {shown}/{page_of(experiment.experiment_id)}", soft_wrap=True)


def _keep(pages: Sequence[Page], studies: Sequence[str], console: "Console") -> int:
    for page in pages:
        wait_until_served(page)
        if page.name == "MLflow":
            _show_mlflow(page.address, "", studies, console)
        else:
            console.print(f"{page.name:<7} {page.address}", soft_wrap=True)
    if not pages:
        return 0
    console.print("Ctrl-C ends them")
    while True:
        for page in pages:
            if page.process.poll() is not None:
                console.print(f"{page.name} has ended: {_last_line(page)}", soft_wrap=True)
                return FAILED
        time.sleep(0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.ui",
        description="Serve MLflow's pages, and Optuna's, for the stores of a study.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="whose stores, or which")
    parser.add_argument("--port", type=int, help=f"of MLflow; {_MLFLOW_PORT}, or one that is free")
    parser.add_argument("--optuna-port", type=int, help=f"of Optuna; {_OPTUNA_PORT}, or one that is free")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(lambda: show(options.words, (options.port, options.optuna_port)), "the pages are served no more")


if __name__ == "__main__":
    sys.exit(main())
