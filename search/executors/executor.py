"""The executor protocol: an executor starts workers and says what each may use."""

from dataclasses import dataclass
from typing import Protocol

from search.config import ExecutorConfig, StudyConfig
from search.executors.process import WorkerProcess


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's share of its machine: CPU threads, and the cores that these run on; no cores for any core."""

    threads: int
    cores: tuple[int, ...] = ()


class Executor(Protocol):
    """Starts workers, and says how many there may be and what each of them may use."""

    @property
    def devices(self) -> int:
        """How many devices there are; each takes ``executor.trials_per_device`` workers."""

    @property
    def description(self) -> str:
        """The end of a line about all workers, such as ``" on 2 GPUs"``; empty for one device of this machine."""

    def config_for_worker(self, config: StudyConfig) -> StudyConfig:
        """The configuration with which a worker opens the study."""

    def share(self, place: int, beside: int) -> Share:
        """The share of the worker at ``place`` among ``beside`` workers."""

    def start(self, place: int, share: Share) -> WorkerProcess:
        """Start the worker at a place. It gets the device ``place`` modulo the number of devices."""


def for_worker(executor: ExecutorConfig) -> ExecutorConfig:
    """The executor's keys for a worker: it trains by itself, with the same number of GPUs a trial."""
    return ExecutorConfig(name="inline", gpus_per_trial=executor.gpus_per_trial)
