"""Optuna's storage, opened with its heartbeats."""

import warnings
from collections.abc import Callable

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from search.storage.postgres import SteadyStorage, is_postgres, with_driver
from search.storage.private_apis import models
from search.storage.proxy import Proxy, is_proxy
from search.storage.sqlite import file_of, make_whole, write_ahead

# A heartbeat a minute and three minutes' grace: shorter ones kill live trials whose process is busy (optuna#5470).
HEARTBEAT_SECONDS = 60


GRACE_SECONDS = 180


def open_storage(url: str, on_stale: Callable[[Study, FrozenTrial], None] | None = None) -> BaseStorage:
    """Optuna's storage at the URL of a database or a proxy.

    Where the file of an SQLite database may be missing, one process at a time may call.

    Args:
        url: URL of the database or of the proxy.
        on_stale: Is called with each trial that was failed because its heartbeats have stopped.
    """
    if is_proxy(url):
        return Proxy(url, HEARTBEAT_SECONDS, on_stale)
    write_ahead(url)
    file = file_of(url)
    if file is not None and not file.exists():
        # Optuna makes missing tables, but no missing index: without it, two studies could have one name.
        make_whole(file, models.BaseModel.metadata.create_all)
    with warnings.catch_warnings():
        # Optuna warns of heartbeats and of their callback.
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        return (SteadyStorage if is_postgres(url) else RDBStorage)(
            with_driver(url),
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=on_stale,
        )
