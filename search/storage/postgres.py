"""PostgreSQL as Optuna's store: connections, locks, and a storage that survives a restart of the server."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import datetime
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError

from search.storage.private_apis import models, transaction
from search.storage.retrying import retried, retry_methods
from search.storage.server_lock import SharedLock
from strategies import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# Between two tries to take a lock within a time limit.
_POLL_SECONDS = 0.05

# Client and server notice within a minute that the other is gone silently (a power cut, a cable). Otherwise the client
# would wait a quarter of an hour for its answer, and the server would keep the locks of a dead host for two hours.
_CONNECTION = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}

#: System attribute of a trial: a mark of the call that changed its state last.
_MARK = "unfreeze:changed_by"


def is_postgres(url: str) -> bool:
    """Whether a URL is that of a PostgreSQL database, with any driver."""
    return url.partition(":")[0].partition("+")[0] in ("postgresql", "postgres")


def with_driver(url: str) -> str:
    """A PostgreSQL URL, completed by an installed driver and by time limits where it has none; other URLs unchanged.

    Raises:
        ConfigError: No driver is installed.
    """
    if not is_postgres(url):
        return url
    found = make_url(url)
    if found.drivername in ("postgresql", "postgres"):
        # psycopg comes first, since our extra installs it; SQLAlchemy would take psycopg2 for the plain name.
        drivers = [name for name in ("psycopg", "psycopg2") if find_spec(name) is not None]
        if not drivers:
            raise ConfigError("PostgreSQL needs a driver, which comes with: pip install -e '.[postgres]'")
        found = found.set(drivername=f"postgresql+{drivers[0]}")
    if found.get_driver_name() in ("psycopg", "psycopg2"):
        found = found.update_query_dict({key: value for key, value in _CONNECTION.items() if key not in found.query})
    return found.render_as_string(hide_password=False)


class AdvisoryLock(SharedLock):
    """A lock in a PostgreSQL database, for the processes of all hosts that use the database.

    Args:
        url: URL of the database.
        name: Name of the lock.
    """

    def __init__(self, url: str, name: str) -> None:
        super().__init__()
        # No transactions: one that stays open while the lock is held would hold up the server's vacuum.
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0)
        self._key = int.from_bytes(sha256(f"unfreeze {name}".encode()).digest()[:8], signed=True)
        self._connection: Connection | None = None

    def connect(self) -> None:
        """Open the connection, without retries."""
        self._connection = self._engine.connect()

    def close(self) -> None:
        """End the connection."""
        self._drop()
        self._engine.dispose()

    def _take(self, timeout: float | None) -> bool:
        if timeout is None:
            retried(lambda: self._call("pg_advisory_lock"))
            return True
        until = time.monotonic() + timeout
        while not retried(lambda: self._call("pg_try_advisory_lock")):
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _give_back(self) -> None:
        # Where the connection has ended the server has released the lock.
        if self._connection is not None:
            with suppress(DBAPIError):
                self._call("pg_advisory_unlock")

    def _is_held(self) -> bool:
        try:
            # The lock belongs to this connection; a new one would hold nothing.
            return self._connection is not None and bool(self._connection.scalar(text("SELECT 1")))
        except DBAPIError:
            self._drop()
            return False

    def _call(self, function: str) -> bool:
        # A retry on a new connection locks once: the server has released the lock of the old connection.
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            return bool(self._connection.scalar(text(f"SELECT {function}(:key)"), {"key": self._key}))
        except DBAPIError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def _count_in_utc(connection: Any, record: Any) -> None:
    """Is called for each connection; the host's PGTZ would override a time zone in the URL."""
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    connection.commit()


class SteadyStorage(RDBStorage):
    """Optuna's storage on PostgreSQL, which retries when connections end and while the server is away.

    Where a connection ends between a commit and its answer, the change may have happened or not. Idempotent calls, that
    is reading and writing the same value under the same key, are simply repeated (:data:`_REPEATABLE`). Making a trial
    and changing its state are not idempotent: repeated, there would be two trials, or a told trial would seem to have
    been told by another process. These two calls write a mark of their own to the trial, in the same transaction, and
    look for the mark before they are repeated.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        # Idle connections that a firewall has dropped are replaced before use.
        super().__init__(url, engine_kwargs={"pool_pre_ping": True, "pool_recycle": 1800}, **settings)
        self._begun: set[str] = set()
        # Optuna stores the time of heartbeats without a time zone, in the time zone of the connection.
        event.listen(self.engine, "connect", _count_in_utc)
        self.engine.dispose()

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        template = create_trial(state=TrialState.RUNNING) if template_trial is None else deepcopy(template_trial)
        mark = uuid4().hex
        template.system_attrs = template.system_attrs | {_MARK: mark}
        ask = super()._create_new_trial
        try:
            return retried(lambda: ask(study_id, template))
        finally:
            self._begun.discard(mark)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: "Session"
    ) -> models.TrialModel:
        """Is called at each attempt, Optuna's own retries too, in its transaction, while the study's row is locked."""
        assert template_trial is not None, "each template has a mark"
        mark = template_trial.system_attrs[_MARK]
        if mark in self._begun:
            attribute = models.TrialSystemAttributeModel
            found = (
                session.query(models.TrialModel)
                .join(attribute, attribute.trial_id == models.TrialModel.trial_id)
                .filter(models.TrialModel.study_id == study_id)
                .filter(attribute.key == _MARK, attribute.value_json == json.dumps(mark))
                .one_or_none()
            )
            if found is not None:
                return found
        self._begun.add(mark)
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As in Optuna, with a mark that tells whether this call has changed the state already.

        Raises:
            UpdateFinishedTrialError: Another call has told the trial.
        """
        mark = uuid4().hex
        return retried(lambda: self._change_state(trial_id, state, values or (), mark))

    def _change_state(self, trial_id: int, state: TrialState, values: Sequence[float], mark: str) -> bool:
        with transaction(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            left = models.TrialSystemAttributeModel.find_by_trial_and_key(trial, _MARK, session)
            if left is not None and json.loads(str(left.value_json)) == mark:
                return True
            before = cast(TrialState, trial.state)
            self.check_trial_is_updatable(trial_id, before)
            if state == TrialState.RUNNING and before != TrialState.WAITING:
                return False
            for objective, value in enumerate(values):
                self._set_trial_value_without_commit(session, trial, objective, value)
            self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, _MARK, mark)
            trial.state = state
            if state == TrialState.RUNNING:
                trial.datetime_start = datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.now()
        return True

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        def ask() -> list[int]:
            with self.engine.connect() as connection:
                up = connection.scalar(text("SELECT extract(epoch FROM now() - pg_postmaster_start_time())"))
            # Heartbeats could not be recorded while the server was away: no trial is failed for that.
            return super(SteadyStorage, self)._get_stale_trial_ids(study_id) if up > (self.grace_period or 0) else []

        return retried(ask)


# Idempotent calls. A repeated write changes a row to the value that it holds, or a unique key refuses it, which Optuna
# ignores.
_REPEATABLE = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "_get_trials",
    "_get_best_trial_id",
    "set_study_user_attr",
    "set_study_system_attr",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "record_heartbeat",
)


retry_methods(SteadyStorage, _REPEATABLE)
