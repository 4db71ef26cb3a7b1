"""Attributes of trials, written to Optuna's store while training goes on."""

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from optuna.trial import Trial

from search.storage.private_apis import trial_id


class AttributeWriter:
    """Writes attributes of trials in the order in which they are put, in one thread.

    What a trial object holds stays as it is: that is the training thread's.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attributes")
        self._pending: defaultdict[int, list[Future[None]]] = defaultdict(list)

    def put(self, trial: Trial, attributes: Mapping[str, Any]) -> None:
        """Have attributes of a trial written."""
        self._pending[trial.number].append(self._thread.submit(write_attributes, trial, attributes))

    def flush(self, trial: Trial) -> None:
        """Wait until all that was put of a trial is written.

        Raises:
            Exception: Whatever the store raised, such as for a trial that another process has told.
        """
        for written in self._pending.pop(trial.number, []):
            written.result()


def write_attributes(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Write attributes of a trial to the store at once, and leave the trial object as it is."""
    for name, value in attributes.items():
        trial.storage.set_trial_user_attr(trial_id(trial), name, value)
