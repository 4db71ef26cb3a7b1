"""PostgreSQL as Optuna's store: connections, and a storage that outlives their end and the server's restart."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from strategies import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")

# How long a server may be away before a study gives up; a restart with recovery takes seconds, a failover minutes.
_PATIENCE_SECONDS = 600.0
_LONGEST_PAUSE_SECONDS = 5.0

# Both ends notice within a minute that the other is gone without a word (a power cut, a cable). Else the client would
# wait a quarter of an hour for its answer, and the server keep the locks of a dead host for two hours. One time zone,
# since Optuna keeps the server's time in columns without one, and each host's PGTZ would move it.
_CONNECTION = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "options": "-c timezone=UTC -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}

#: System attribute of a trial: which call changed its state last.
_MARK = "unfreeze:changed_by"

logger = logging.getLogger(__name__)


def is_postgres(url: str) -> bool:
    """Whether a URL is that of a PostgreSQL database, with whichever driver."""
    return url.partition(":")[0].partition("+")[0] in ("postgresql", "postgres")


def with_driver(url: str) -> str:
    """A PostgreSQL URL with a driver that is installed and with time limits where it says neither; others as they are.

    Raises:
        ConfigError: No driver is installed.
    """
    if not is_postgres(url):
        return url
    found = make_url(url)
    if found.drivername in ("postgresql", "postgres"):
        # In this order, since it is what our extra installs; the plain name would always be psycopg2 to SQLAlchemy.
        drivers = [name for name in ("psycopg", "psycopg2") if find_spec(name) is not None]
        if not drivers:
            raise ConfigError("PostgreSQL needs a driver, which comes with: pip install 'unfreeze[postgres]'")
        found = found.set(drivername=f"postgresql+{drivers[0]}")
    if found.get_driver_name() in ("psycopg", "psycopg2"):
        found = found.update_query_dict({key: value for key, value in _CONNECTION.items() if key not in found.query})
    return _in_full(found)


def _in_full(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def patiently(do: Callable[[], T]) -> T:
    """Do something with a database, again and again while the server is away, for some minutes.

    Args:
        do: What is done; it must be safe to do again when it was done and the answer got lost.
    """
    until, failures = float("inf"), 0
    while True:
        try:
            done = do()
        except Exception as error:
            if not _is_away(error) or time.monotonic() >= until:
                raise
            failures += 1
            if failures == 1:
                until = time.monotonic() + _PATIENCE_SECONDS
            # A connection that had ended is replaced at once; only what lasts is worth a word.
            elif failures == 2:
                logger.warning("PostgreSQL does not answer; it is asked again for %d minutes", _PATIENCE_SECONDS / 60)
        else:
            if failures > 1:
                logger.warning("PostgreSQL answers again")
            return done
        time.sleep(min(0.05 * 2**failures, _LONGEST_PAUSE_SECONDS))


def _is_away(error: BaseException | None) -> bool:
    """Whether what went wrong is that the connection ended, or could not be made, or the server had no room for it."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        # Optuna and sessions wrap the driver's word in several of their own.
        error = error.__cause__ or error.__context__
    return False


class SteadyStorage(RDBStorage):
    """Optuna's storage on PostgreSQL, which goes on when connections end and when the server was away.

    Where a connection ends between a commit and its answer, the change may have happened or not. Reading, and writing
    the same value under the same key, are as good twice as once, and are simply done again (:data:`_REPEATABLE`). Not
    so what makes trials and what changes their state: done again, there would be a trial twice, and one that was told
    would seem to have been told by somebody else. These calls leave a mark of their own in the trial, in the same
    transaction, and look for it before they are done again.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        # Idle connections that a firewall dropped are replaced before they are used.
        super().__init__(url, engine_kwargs={"pool_pre_ping": True, "pool_recycle": 1800}, **settings)
        self._begun: set[str] = set()

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        template = create_trial(state=TrialState.RUNNING) if template_trial is None else deepcopy(template_trial)
        mark = uuid4().hex
        template.system_attrs = template.system_attrs | {_MARK: mark}
        ask = super()._create_new_trial
        try:
            return patiently(lambda: ask(study_id, template))
        finally:
            self._begun.discard(mark)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: "Session"
    ) -> models.TrialModel:
        """Is called at each attempt, Optuna's own among them, in its transaction, while the study's row is locked."""
        assert template_trial is not None, "each has a mark"
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
        """As Optuna's, with a mark: whether this call changed the state.

        Raises:
            UpdateFinishedTrialError: Another call has told the trial.
        """
        mark = uuid4().hex
        return patiently(lambda: self._change_state(trial_id, state, values or (), mark))

    def _change_state(self, trial_id: int, state: TrialState, values: Sequence[float], mark: str) -> bool:
        with _create_scoped_session(self.scoped_session) as session:
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
            # No heart could be heard while the server was away, and none is given up for that.
            return super(SteadyStorage, self)._get_stale_trial_ids(study_id) if up > (self.grace_period or 0) else []

        return patiently(ask)


# Reading, and writing of the same under the same key: rows that are there are changed to what they hold, or the second
# is refused by a unique key, which Optuna passes over.
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


def _repeated(name: str) -> Callable[..., Any]:
    once = getattr(RDBStorage, name)

    def method(self: SteadyStorage, *arguments: Any, **named: Any) -> Any:
        return patiently(lambda: once(self, *arguments, **named))

    method.__name__ = name
    return method


for _name in _REPEATABLE:
    setattr(SteadyStorage, _name, _repeated(_name))
