"""What an executor is: it starts workers and says what each may use."""

from dataclasses import dataclass
from typing import Protocol

from search.config import ExecutorConfig, StudyConfig
from search.executors.process import WorkerProcess


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker may use of its machine: CPU threads, and the cores that these run on; no cores for any."""

    threads: int
    cores: tuple[int, ...] = ()


class Executor(Protocol):
    """Starts workers, and says how many there may be and what each of them may use."""

    @property
    def devices(self) -> int:
        """How many devices there are; each takes ``executor.trials_per_device`` workers."""

    @property
    def description(self) -> str:
        """What a line about all workers ends with, such as ``" on 2 GPUs"``; empty for one device of this machine."""

    def config_for_worker(self, config: StudyConfig) -> StudyConfig:
        """What a worker makes its study ready with."""

    def share(self, place: int, beside: int) -> Share:
        """What the worker at a place has, where there are so many."""

    def start(self, place: int, share: Share) -> WorkerProcess:
        """Start the worker at a place; those of one device are as many places apart as there are devices."""


def for_worker(executor: ExecutorConfig) -> ExecutorConfig:
    """What a worker is told of the executor's keys: it trains by itself, with as many GPUs a trial."""
    return ExecutorConfig(name="inline", gpus_per_trial=executor.gpus_per_trial)
