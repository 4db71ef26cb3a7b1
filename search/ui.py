"""Web pages that show a search, MLflow's and Optuna's: ``python -m search.ui [STUDY]``."""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.command_line import FAILED, HelpFormatter, exit_code, port_number, read_words, set_up_logging
from search.config import spelled
from search.reporting import (
    PageServer,
    end_servers,
    free_port,
    last_line,
    serve_mlflow,
    serve_optuna,
    wait_until_served,
)
from strategies import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

_MLFLOW_PORT, _OPTUNA_PORT = 5000, 8080

_USAGE = """\
The study, named as for search.run, says where its stores are. Without a study, tracking.uri=... and store.url=... do,
or the stores of the working folder are shown. Only this machine can open the pages; Ctrl-C ends their servers.

Optuna's pages are served where optuna-dashboard is installed (pip install optuna-dashboard)."""


def show(words: Sequence[str], ports: tuple[int | None, int | None]) -> int:
    """Serve the pages until a signal comes or a server ends."""
    # Only here: they take seconds to import.
    from search.processes import stopped_by_signals
    from search.reporting import SafeConsole
    from search.storage import MLFLOW_TABLE, OPTUNA_TABLE, absolute_sqlite, check_begun, open_one, reachable, stores_of

    url, uri, studies = stores_of(words)
    # Both servers would make a store that is not there.
    check_begun("store.url", url, OPTUNA_TABLE)
    check_begun("tracking.uri", uri, MLFLOW_TABLE)
    for study in studies:
        open_one(url, uri, study)
    console = SafeConsole(highlight=False, markup=False)
    servers: list[PageServer] = []
    with stopped_by_signals():
        try:
            if uri.startswith(("http://", "https://")):
                _show_mlflow(uri, "  (a server of its own)", studies, console)
            else:
                port = free_port(ports[0] or _MLFLOW_PORT, "--port" if ports[0] else None)
                servers.append(serve_mlflow(reachable(uri), port))
            if importlib.util.find_spec("optuna_dashboard") is not None:
                port = free_port(ports[1] or _OPTUNA_PORT, "--optuna-port" if ports[1] else None)
                servers.append(serve_optuna(absolute_sqlite(url), port))
            return _keep_serving(servers, studies, console)
        finally:
            end_servers(servers)


def _show_mlflow(address: str, remark: str, studies: Sequence[str], console: "Console") -> None:
    """Print MLflow's address, and below it the address of each begun study's table of trials."""
    from search.config import without_password
    from search.storage import reading_mlflow
    from search.tracking import front_page, page_of

    shown = without_password(address).rstrip("/")
    console.print(f"MLflow  {shown}/{front_page()}{remark}", soft_wrap=True)
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


def _keep_serving(servers: Sequence[PageServer], studies: Sequence[str], console: "Console") -> int:
    for server in servers:
        wait_until_served(server)
        if server.name == "MLflow":
            _show_mlflow(server.address, "", studies, console)
        else:
            console.print(f"{server.name:<7} {server.address}", soft_wrap=True)
    if not servers:
        return 0
    console.print("Ctrl-C ends them")
    while True:
        for server in servers:
            if server.process.poll() is not None:
                console.print(f"{server.name} has ended: {last_line(server)}", soft_wrap=True)
                return FAILED
        time.sleep(0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("ui"),
        description="Serve MLflow's pages, and Optuna's, for the stores of a study.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="STUDY or key=value", help="the study, or the stores, to show")
    parser.add_argument("--port", type=port_number, help=f"MLflow's port; {_MLFLOW_PORT}, or a free one")
    parser.add_argument("--optuna-port", type=port_number, help=f"Optuna's port; {_OPTUNA_PORT}, or a free one")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: show(options.words, (options.port, options.optuna_port)), "the servers have ended")


if __name__ == "__main__":
    sys.exit(main())
