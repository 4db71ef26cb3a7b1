"""A proxy in front of the study's database, for many workers: ``python -m search.store store.url=postgresql://...``."""

import argparse
import sys
from collections.abc import Sequence

from search.command_line import HelpFormatter, exit_code, read_words, say, set_up_logging, whole_number
from search.config import StoreConfig, check_section, spelled, without_password
from strategies import ConfigError, first_line

_USAGE = """\
Workers on any host then say store.url=grpc://HOST:PORT. The proxy has neither encryption nor passwords: let it listen
where only your own machines reach it. All processes of a study use the proxy, or none."""


def run_store(overrides: Sequence[str], host: str, port: int) -> int:
    """Serve until a signal ends it.

    Raises:
        ConfigError: The database cannot be opened, or the address is taken.
    """
    others = [word for word in overrides if not word.startswith("store.url=")]
    if others:
        raise ConfigError(f"a proxy takes store.url alone, not {' '.join(map(without_password, others))}")
    given = {"url": overrides[-1].partition("=")[2]} if overrides else {}
    url = check_section("store", StoreConfig, given).url

    import optuna
    from optuna.storages import get_storage

    from search.storage import (
        OPTUNA_TABLE,
        absolute_sqlite,
        check_address,
        check_store,
        is_proxy,
        make_folder_of,
        open_storage,
        serve,
    )

    if is_proxy(url):
        raise ConfigError(f"store.url: {url!r} is a proxy itself")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_store("store.url", url, OPTUNA_TABLE, "opened", lambda: None)
    check_address(host, port)
    make_folder_of(url)
    try:
        # Clients queue retries, not the proxy: only they know how often a trial may be tried again.
        storage = get_storage(open_storage(absolute_sqlite(url)))
    except Exception as error:  # each database driver has errors of its own
        raise ConfigError(f"store.url: {without_password(url)!r} cannot be opened: {first_line(error)}") from error
    server, port = serve(storage, host, port)
    say(f"Proxy of {without_password(url)} at grpc://{host}:{port}")
    server.wait_for_termination()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("store"),
        description="Let many workers use one database through one process.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="store.url=URL", help="the database, SQLite's by default")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at, 127.0.0.1 by default")
    parser.add_argument("--port", type=whole_number(0, 65535), default=13000, help="13000 by default")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: run_store(options.overrides, options.host, options.port), "workers wait for some minutes")


if __name__ == "__main__":
    sys.exit(main())
