"""Everything that this package uses of torch and torchvision without their promise to keep it.

The names begin with an underscore, or lie in a module that does. ``tests/trainers/test_private_apis.py`` checks each of
them, so that a new version that drops or changes one fails there, by name.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = [
    "BatchNorm",
    "SyncBatchNormFunction",
    "abort_process_group",
    "allow_recompiles",
    "compile_errors",
    "conv_forward",
    "disable_onednn",
    "is_dynamo_error",
    "load_own_tensors",
    "options_of_mode",
    "set_conv_forward",
    "skipped_graphs",
    "targets_of_set",
    "write_count",
]

# BatchNorm: the base class of BatchNorm in one, two and three dimensions, of timm's and of peft's; torch has no public
# name for all of them.
# SyncBatchNormFunction: torch's module SyncBatchNorm cannot be used, since the modules must stay the same objects.


def conv_forward(conv: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of a Conv2d, which pads as its ``padding_mode`` says; torch has no public function that does."""
    outputs: Tensor = nn.Conv2d._conv_forward(conv, inputs, weight, bias)
    return outputs


#: How a module takes its own tensors from a state dict. torch has no public name for it, and a class of torchvision
#: overrides it.
load_own_tensors = nn.Module._load_from_state_dict


def set_conv_forward(conv: nn.Conv2d, forward: Callable[[nn.Conv2d, Tensor, Tensor, Tensor | None], Tensor]) -> None:
    """Let a Conv2d convolve by another function; its public ``forward`` must stay, because traced graphs call it.

    Args:
        conv: Changed in place.
        forward: Takes the arguments of :func:`conv_forward`.
    """
    conv._conv_forward = MethodType(forward, conv)  # type: ignore[method-assign]


def write_count(tensor: Tensor) -> int:
    """How often a tensor was written to in place; torch has no public counter of that."""
    return tensor._version


def targets_of_set(dataset: Any) -> list[int]:
    """The class index of each image of a torchvision data set; many sets have no public list of them.

    Their public way, reading each item, would decode every image.
    """
    for attribute in ("targets", "_labels", "labels"):
        if hasattr(dataset, attribute):
            return [int(target) for target in np.asarray(getattr(dataset, attribute), dtype=np.int64)]
    return [int(target) for _, target in dataset._samples]


def abort_process_group() -> None:
    """End NCCL's waiting calls; the public ``destroy_process_group`` itself waits for the other ranks."""
    torch.distributed.distributed_c10d._abort_process_group()


def disable_onednn() -> None:
    """Compute without oneDNN from now on; the public ``mkldnn.flags`` is a context that switches back at its end.

    Without ``_fp32_precision=None`` the call would change the precision of float32 too.
    """
    torch.backends.mkldnn.set_flags(False, _fp32_precision=None)  # type: ignore[no-untyped-call]


def compile_errors() -> tuple[type[Exception], ...]:
    """What a compiled function raises if it cannot be compiled, before it computes; torch has no public class of it."""
    # Only here: dynamo takes seconds to import.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def is_dynamo_error(error: BaseException) -> bool:
    """Whether an error is dynamo's own, whose text says what cannot be compiled."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def options_of_mode(mode: str) -> dict[str, Any]:
    """The options that a mode of ``torch.compile`` stands for: it takes a mode or other options, but not both."""
    from torch._inductor import list_mode_options

    options: dict[str, Any] = list_mode_options(mode)
    return options


def skipped_graphs() -> int:
    """How often this process has compiled or run code without CUDA graphs that were asked for; only the log says so."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def allow_recompiles(at_least: int) -> None:
    """Let dynamo keep so many versions of a function, and compile backward passes together with forward passes.

    Both hold for the whole process. ``torch.compile`` has a public argument for neither.
    """
    import torch._dynamo.config
    import torch._functorch.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, at_least)
    torch._functorch.config.force_non_lazy_backward_lowering = True
