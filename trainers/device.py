"""Which device and number format a trial computes in."""

import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from strategies import ConfigError, first_line

# What CUDA and its libraries take of a GPU for each process, beside tensors; generous, since torch cannot tell.
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
        """What rounds alike, such as ``"NVIDIA H200, bf16"`` or ``"cpu, fp32"``, whatever the number of threads."""
        name = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else self.torch.type
        return f"{name}, {'bf16' if self.bf16 else 'fp32'}"

    @property
    def free_bytes(self) -> int:
        """Memory that is free for training: the GPU's, else the machine's."""
        if self.torch.type == "cuda":
            return torch.cuda.mem_get_info(self.torch)[0]
        return int(psutil.virtual_memory().available)

    @property
    def peak_bytes(self) -> int:
        """The most memory that this process has held so far; on a GPU what torch holds there, and the context."""
        if self.torch.type == "cuda":
            return torch.cuda.max_memory_reserved(self.torch) + _CONTEXT_BYTES
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""
        return torch.amp.autocast_mode.autocast(self.torch.type, dtype=torch.bfloat16, enabled=self.bf16)


def choose_device(name: str = "auto", precision: str = "auto") -> Device:
    """Pick the device and precision; for CUDA devices, and for the whole process, this settles TF32 too.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU) or a torch device.
        precision: ``auto`` (bf16 on CUDA devices that compute it natively, else fp32), ``fp32`` or ``bf16``. What bf16
            leaves in float32 may be computed in TF32, unless ``fp32`` is asked for.

    Raises:
        ConfigError: The device is unknown or not there.
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
    # On CPUs bf16 is emulated unless they have AMX or AVX512-BF16, and is slower where it is.
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return Device(device, bf16=precision == "bf16" or (precision == "auto" and native))


def allow_tf32(allowed: bool) -> None:
    """Let CUDA devices that can do so compute products and convolutions of float32 in TF32, or forbid it.

    TF32 has float32's range with 10 bits after the point instead of 23. By itself torch allows it in convolutions only.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
