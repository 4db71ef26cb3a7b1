from collections.abc import Callable, Iterator
from itertools import count

import pytest
from lab import Lab
from postgres import Server, Way

# Those of the studies next door are used here too.
from tests.search.conftest import empty_mlflow, new_lab  # noqa: F401

_numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server for all tests of this process."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def database(server) -> str:
    """The URL of an empty database."""
    return server.new_database(f"db{next(_numbers)}")


@pytest.fixture
def way(server) -> Iterator[Way]:
    """A way to the server that can lose answers."""
    way = Way(server)
    yield way
    way.close()


@pytest.fixture
def shared_lab(new_lab, database) -> Callable[..., Lab]:  # noqa: F811
    """Make labs whose study is in PostgreSQL."""

    def make(**changes):
        lab = new_lab(store={"url": database}, **changes)
        lab.optuna_url = database.replace("://", "+psycopg://")
        return lab

    return make
