"""MLflow's system metrics: how busy the machine is while a trial trains."""

import logging
import time

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

# MLflow's own monitors look as often.
_SECONDS = 10.0
_PREFIX = "system/"

logger = logging.getLogger(__name__)


class SystemMetrics:
    """Reads processors, memory and GPUs (with ``nvidia-ml-py``) at once and then every ten seconds at most."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor()]  # type: ignore[no-untyped-call]
        try:
            self._monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
        except Exception as error:  # NVML answers with errors of its own for a lost, forbidden or divided GPU
            logger.debug("no GPU is watched: %s", error)
        self._last = -_SECONDS

    def metrics(self) -> dict[str, float]:
        """The metrics as of now, by MLflow's names; empty within ten seconds after the last reading."""
        now = time.monotonic()
        if now - self._last < _SECONDS:
            return {}
        self._last = now
        found: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.clear_metrics()  # type: ignore[no-untyped-call]
                monitor.collect_metrics()  # type: ignore[no-untyped-call]
                values: dict[str, float] = monitor.aggregate_metrics()  # type: ignore[no-untyped-call]
            except Exception as error:  # no error of a library that only watches may end a trial
                logger.warning("%s is left out from now on: %s", type(monitor).__name__, error)
                self._monitors.remove(monitor)
                continue
            found |= {_PREFIX + name: value for name, value in values.items()}
        return found
