"""Attributes of trials, written to Optuna's store while the training continues."""

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from optuna.trial import Trial

from search.storage.private_apis import id_in_storage


class AttributeWriter:
    """Writes attributes of trials in the order in which they are put, in one thread.

    Trial objects are not changed: they belong to the training thread.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attributes")
        self._pending: defaultdict[int, list[Future[None]]] = defaultdict(list)

    def put(self, trial: Trial, attributes: Mapping[str, Any]) -> None:
        """Queue attributes of a trial for writing."""
        self._pending[trial.number].append(self._thread.submit(write_attributes, trial, attributes))

    def flush(self, trial: Trial) -> None:
        """Wait until all queued attributes of a trial are written.

        Raises:
            Exception: Whatever the store raised, such as for a trial that another process has told.
        """
        for written in self._pending.pop(trial.number, []):
            written.result()


def write_attributes(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Write attributes of a trial to the store at once, without a change of the trial object."""
    for name, value in attributes.items():
        trial.storage.set_trial_user_attr(id_in_storage(trial), name, value)
