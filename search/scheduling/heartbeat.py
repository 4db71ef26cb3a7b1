"""Heartbeats of a running trial."""

import logging
import os
import threading
from types import TracebackType
from typing import cast

from optuna.trial import Trial

from search.storage import HEARTBEAT_SECONDS, BaseHeartbeat, id_in_storage

logger = logging.getLogger(__name__)


class Heartbeat:
    """Records that a trial is alive, from a thread, while the ``with`` block runs."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{trial.number}-{os.getpid()}", daemon=True)

    def _beat(self) -> None:
        storage = cast(BaseHeartbeat, self._trial.storage)
        while True:
            try:
                storage.record_heartbeat(id_in_storage(self._trial))
            except Exception as error:  # each database driver has errors of its own
                # The trial itself meets the store's error soon; until then the next heartbeat makes up for this one.
                logger.info("trial %d could not record that it is alive: %s", self._trial.number, error)
            if self._stop.wait(HEARTBEAT_SECONDS):
                return

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
