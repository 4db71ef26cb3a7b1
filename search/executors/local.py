"""Workers of this machine, each with a device and a share of the CPU cores."""

import os

import torch

from search.config import StudyConfig
from search.executors.executor import Share, for_worker
from search.executors.process import LocalProcess, WorkerProcess
from strategies import ConfigError


class LocalExecutor:
    """Workers of this machine, each with a device, or the GPUs of one trial, and a share of the CPU cores.

    Args:
        gpus: Values of ``CUDA_VISIBLE_DEVICES``, one for each place; empty where workers use another device.
        device: The workers' ``device`` key.
        threads: CPU threads of all workers together.
    """

    def __init__(self, gpus: tuple[str, ...], device: str, threads: int) -> None:
        self._gpus, self._device, self._threads = gpus, device, threads

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return max(1, len(self._gpus))

    @property
    def description(self) -> str:
        """Such as ``" on 2 GPUs"``."""
        each = self._gpus[0].count(",") + 1 if self._gpus else 1
        together = f", {each} of them a trial" if each > 1 else ""
        return f" on {each * len(self._gpus)} GPUs{together}" if len(self._gpus) > 1 else ""

    def config_for_worker(self, config: StudyConfig) -> StudyConfig:
        """The study's configuration, for the device that the worker sees."""
        return config.model_copy(update={"device": self._device, "executor": for_worker(config.executor)})

    def share(self, place: int, beside: int) -> Share:
        """Threads and cores divided among the workers; where there are more workers than cores, any cores."""
        cores = _own_cores()
        if beside <= len(cores):
            cores = cores[place % beside * len(cores) // beside : (place % beside + 1) * len(cores) // beside]
        return Share(max(1, self._threads // beside), cores)

    def start(self, place: int, share: Share) -> WorkerProcess:
        """Start a worker on the device of its place."""
        # By variable, not by index: libraries may open a context on the first GPU that they see.
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[place % len(self._gpus)]} if self._gpus else {}
        return LocalProcess({"OMP_NUM_THREADS": str(share.threads), **gpu})


def _local(config: StudyConfig) -> LocalExecutor | None:
    indices = _gpus_of(config)
    together = config.executor.gpus_per_trial
    several = len(indices) >= 2 * together
    if config.executor.name == "inline" or (config.executor.name == "auto" and not several):
        return None
    if indices and indices[0] != 0:
        # The command itself computes on the first GPU that the study may use.
        torch.cuda.set_device(indices[0])
    # torch counts only the GPUs that this variable shows.
    shown = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")))
    names = [shown[index] if shown else str(index) for index in indices]
    # GPUs that are left over stay idle; too few for one trial are refused where the study is opened.
    gpus = tuple(",".join(names[at : at + together]) for at in range(0, len(names) - together + 1, together))
    return LocalExecutor(gpus, "cuda" if gpus else config.device, config.threads or torch.get_num_threads())


def _gpus_of(config: StudyConfig) -> tuple[int, ...]:
    """The GPUs that a study may train on, by torch's index; none where the study uses another device.

    Raises:
        ConfigError: There is no such GPU.
    """
    asked, there = config.executor.devices, torch.cuda.device_count()
    if config.device.startswith("cuda:"):
        # A missing GPU is refused when it is opened.
        return (int(config.device.removeprefix("cuda:")),)
    if config.device not in ("auto", "cuda"):
        return ()
    if asked == "auto":
        return tuple(range(there))
    wanted = tuple(range(asked)) if isinstance(asked, int) else asked
    if max(wanted) >= there:
        has = f"this machine has {there}, counted from 0" if there else "this machine has none that torch can use"
        raise ConfigError(f"executor.devices: there is no GPU {max(wanted)}; {has}")
    return wanted


def _own_cores() -> tuple[int, ...]:
    """Cores that this process may use; none where the platform cannot tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
