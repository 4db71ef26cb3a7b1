"""The device and number format that a trial computes in."""

import os
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from strategies import ConfigError, first_line

# Numbers of half the width, in which products and convolutions are computed with the keys.
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

# GPU memory of CUDA and its libraries for each process, beside tensors; a generous guess, since torch cannot tell.
_CONTEXT_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """Where and how to compute.

    Args:
        torch: The torch device; of CUDA always with its index.
        precision: ``fp32``, or the number format of autocast: ``bf16`` or ``fp16``.
    """

    torch: torch.device
    precision: str

    @property
    def bf16(self) -> bool:
        """Whether bf16 autocast is on."""
        return self.precision == "bf16"

    @property
    def description(self) -> str:
        """Such as ``"NVIDIA H200, bf16"`` or ``"cpu (2 threads), fp32"``."""
        if self.torch.type == "cuda":
            name = torch.cuda.get_device_name(self.torch)
        else:
            name = f"{self.torch.type} ({torch.get_num_threads()} threads)"
        return f"{name}, {self.precision}"

    @property
    def arithmetic(self) -> str:
        """What rounding depends on, without the threads: such as ``"NVIDIA H200, bf16"`` or ``"cpu, fp32"``."""
        name = torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else self.torch.type
        return f"{name}, {self.precision}"

    @property
    def free_bytes(self) -> int:
        """Free memory for training: the GPU's, else the machine's."""
        return free_bytes(self.torch)

    @property
    def spare_bytes(self) -> int:
        """Memory of a GPU that was free even when this process held most; on other devices as :attr:`free_bytes`."""
        if self.torch.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.torch) - torch.cuda.memory_allocated(self.torch)
            return self.free_bytes - peak
        return self.free_bytes

    @property
    def peak_bytes(self) -> int:
        """The most memory that this process has held so far; on a GPU torch's memory there and CUDA's context."""
        if self.torch.type == "cuda":
            return torch.cuda.max_memory_reserved(self.torch) + _CONTEXT_BYTES
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""
        dtype = _HALF.get(self.precision, torch.bfloat16)
        return torch.amp.autocast_mode.autocast(self.torch.type, dtype=dtype, enabled=self.precision in _HALF)

    def tune_convolutions(self, sizes_are_fixed: bool) -> None:
        """Let cuDNN try its algorithms on the first batch of each size and keep the fastest, for the whole process.

        Args:
            sizes_are_fixed: Whether all images of a training have one size; each further size would be tried anew.
        """
        torch.backends.cudnn.benchmark = sizes_are_fixed and not torch.backends.cudnn.deterministic


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with what torch holds there without a use and would give back; else of the machine."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return int(psutil.virtual_memory().available)


def choose_device(name: str = "auto", precision: str = "auto", deterministic: bool = False) -> Device:
    """Pick the device and precision; this also sets determinism, and for CUDA devices TF32, for the whole process.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU) or a torch device.
        precision: ``auto`` (bf16 on CUDA devices that compute it natively, else fp32), ``fp32``, ``bf16`` or ``fp16``.
            Operations that the latter two leave in float32 may be computed in TF32, but not with ``fp32``.
        deterministic: Whether the same computation gives the same bits again on a GPU, as it does on a CPU anyway.
            Operations that cannot then raise an error.

    Raises:
        ConfigError: The device is unknown or not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    # Before the first computation: cuBLAS takes its workspace with its first product.
    _be_deterministic(deterministic)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: {name!r} cannot be used: {first_line(error)}") from error
    if device.type == "cuda":
        allow_tf32(precision != "fp32")
        if device.index is None:
            # Many functions of torch.cuda and torch.distributed take no device without an index.
            device = torch.device("cuda", torch.cuda.current_device())
    if precision == "auto":
        # CPUs without AMX or AVX512-BF16 emulate bf16, which is slower.
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if native else "fp32"
    return Device(device, precision)


def _be_deterministic(wanted: bool) -> None:
    # NVIDIA, cuBLAS: "Results reproducibility". Always, since torch reads it at the first product only,
    # and a later study of this process may be deterministic. On Hopper GPUs it is torch's own size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = wanted
    torch.use_deterministic_algorithms(wanted)
    # Otherwise torch would also fill all new memory, against programs that read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 for products and convolutions of float32, on CUDA devices that have it.

    TF32 has float32's range with 10 bits after the point instead of 23. Torch's default allows it in convolutions only.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
