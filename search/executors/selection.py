"""Who trains the trials: this process, worker processes of this machine, or those of a Ray cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from search.config import StudyConfig
from search.executors.executor import Executor
from search.executors.local import _local


def may_start_processes(config: StudyConfig) -> bool:
    """Whether a study may train in worker processes of this machine, as far as its keys tell."""
    executor = config.executor
    finds_gpus = executor.name == "auto" and torch.version.cuda is not None and config.device in ("auto", "cuda")
    return executor.name == "local" or executor.gpus_per_trial > 1 or finds_gpus


@contextmanager
def executor_of(config: StudyConfig) -> Iterator[Executor | None]:
    """The executor of a study, in a ``with`` block; None where this process trains by itself.

    Raises:
        ConfigError: The study asks for a device, a library or a cluster that is missing.
    """
    if config.executor.name == "ray":
        # Only here: the library is an optional extra.
        from search.executors.ray_cluster import connected

        with connected(config) as executor:
            yield executor
    else:
        yield _local(config)
