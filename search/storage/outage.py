"""Whether an error of a store is an outage, a full disk, or a refusal."""

from collections.abc import Iterator

import requests
import sqlalchemy
import urllib3
from mlflow.exceptions import MlflowException

from strategies import first_line

# Status codes of a request that took too long, and of too many requests.
_PASSING = (408, 429)
_UNREACHABLE = (
    ConnectionError,
    TimeoutError,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    sqlalchemy.exc.InterfaceError,
    # Locked, read-only, full, or gone.
    sqlalchemy.exc.OperationalError,
)


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later: no connection, a time-out, a status code above 499, a locked database.

    A refusal is no outage: parameters that MLflow does not take, a run that is not there, a wrong password.
    """
    for one in chain(error):
        if isinstance(one, requests.HTTPError) and one.response is not None:
            return _passes(one.response.status_code)
        # MLflow gives 500 also for a server that it cannot connect to.
        if isinstance(one, MlflowException):
            return _passes(one.get_http_status_code())  # type: ignore[no-untyped-call]
        if isinstance(one, _UNREACHABLE):
            return True
    return False


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes: stores wrap an error of the driver or the network in several of their own."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def reason_of(error: BaseException) -> str:
    """First line of the error at the root of the chain."""
    *_, first = chain(error)
    return first_line(first)


def is_no_room(error: BaseException) -> bool:
    """Whether a disk is full or a quota used up; the same write may succeed once there is room again."""
    # shutil.copytree gathers errors as text alone, and SQLite has a message of its own.
    said = ("No space left on device", "Disk quota exceeded", "disk is full")
    return any(word in str(one) for one in chain(error) for word in said)


def _passes(status: int) -> bool:
    return status >= 500 or status in _PASSING
