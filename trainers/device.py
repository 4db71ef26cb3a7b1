"""The device and number format that a trial computes in."""

import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from strategies import ConfigError, first_line

# GPU memory of CUDA and its libraries for each process, beside tensors; a generous guess, since torch cannot tell.
_CONTEXT_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how to compute: the torch device, and whether bf16 autocast is on."""

    torch: torch.device
    bf16: bool

    @property
    def description(self) -> str:
        """Such as ``"NVIDIA H200, bf16"`` or ``"cpu (2 threads), fp32"``."""
        if self.torch.type == "cuda":
            name = torch.cuda.get_device_name(self.torch)
        else:
            name = f"{self.torch.type} ({torch.get_num_threads()} threads)"
        return f"{name}, {'bf16' if self.bf16 else 'fp32'}"

    @property
    def arithmetic(self) -> str:
        """What rounding depends on, without the threads: such as ``"NVIDIA H200, bf16"`` or ``"cpu, fp32"``."""
        name = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else self.torch.type
        return f"{name}, {'bf16' if self.bf16 else 'fp32'}"

    @property
    def free_bytes(self) -> int:
        """Free memory for training: the GPU's, else the machine's."""
        if self.torch.type == "cuda":
            return torch.cuda.mem_get_info(self.torch)[0]
        return int(psutil.virtual_memory().available)

    @property
    def peak_bytes(self) -> int:
        """The most memory that this process has held so far; on a GPU torch's memory there and CUDA's context."""
        if self.torch.type == "cuda":
            return torch.cuda.max_memory_reserved(self.torch) + _CONTEXT_BYTES
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""
        return torch.amp.autocast_mode.autocast(self.torch.type, dtype=torch.bfloat16, enabled=self.bf16)


def choose_device(name: str = "auto", precision: str = "auto") -> Device:
    """Pick the device and precision; for CUDA devices this also sets TF32, for the whole process.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU) or a torch device.
        precision: ``auto`` (bf16 on CUDA devices that compute it natively, else fp32), ``fp32`` or ``bf16``. Operations
            that bf16 leaves in float32 may be computed in TF32, but not with ``fp32``.

    Raises:
        ConfigError: The device is unknown or not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: {name!r} cannot be used: {first_line(error)}") from error
    if device.type == "cuda":
        allow_tf32(precision != "fp32")
    # CPUs without AMX or AVX512-BF16 emulate bf16, which is slower.
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return Device(device, bf16=precision == "bf16" or (precision == "auto" and native))


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 for products and convolutions of float32, on CUDA devices that have it.

    TF32 has float32's range with 10 bits after the point instead of 23. Torch's default allows it in convolutions only.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
