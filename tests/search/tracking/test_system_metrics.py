"""What is read of the machine while trials train."""

import pynvml
import pytest

from search.tracking.system_metrics import SystemMetrics

ERRORS = [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_NOT_SUPPORTED]


def refusing(code: int):
    def refuse(*arguments):
        raise pynvml.NVMLError(code)

    return refuse


@pytest.fixture
def nvml(monkeypatch):
    """NVML as on a machine with one GPU of which it tells the memory."""
    handle = object()
    answers = {"nvmlInit": None, "nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": handle}
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *arguments, answer=answer: answer)
    memory = pynvml.c_nvmlMemory_t(total=2 * 10**9, used=10**9)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: memory)
    for name in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage"):
        monkeypatch.setattr(pynvml, name, refusing(pynvml.NVML_ERROR_NOT_SUPPORTED))
    return monkeypatch


@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("where", ["nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_gpu_of_which_nvml_answers_with_an_error_is_left_out(nvml, code, where):
    nvml.setattr(pynvml, where, refusing(code))
    found = SystemMetrics().metrics()
    assert any("cpu" in name for name in found)
    assert not any("gpu" in name for name in found)


def test_of_a_divided_gpu_what_nvml_tells_is_read(nvml):
    assert SystemMetrics().metrics()["system/gpu_0_memory_usage_percentage"] == 50.0


def test_a_monitor_that_breaks_is_left_out_and_the_others_go_on(nvml, caplog):
    metrics = SystemMetrics()
    # A division by it is not of NVML's errors.
    nvml.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda handle: 5000)
    nvml.setattr(pynvml, "nvmlDeviceGetEnforcedPowerLimit", lambda handle: 0)
    found = metrics.metrics()
    assert found
    assert not any("gpu" in name for name in found)
    assert "GPUMonitor is left out from now on" in caplog.text
