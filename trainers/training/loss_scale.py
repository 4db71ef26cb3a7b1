"""The scale of a loss in fp16, whose smallest numbers are larger than many gradients."""

from typing import Any

import torch
from torch import Tensor

from trainers.device import Device


class LossScale:
    """Multiplies losses, so that gradients in fp16 do not become zero, and divides the gradients by the same number.

    Micikevicius et al.: Mixed Precision Training, ICLR 2018. The number is halved when a gradient is not finite, and
    doubled after 2,000 gradients that were. In any other number format than fp16 nothing is scaled.

    Args:
        device: Where to compute.
        optimizer: Its parameters have the gradients.
    """

    def __init__(self, device: Device, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._scaler = torch.amp.GradScaler(device.torch.type, enabled=device.precision == "fp16")

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss from which to compute gradients."""
        return self._scaler.scale(loss)

    def unscale(self) -> bool:
        """Divide the gradients, and return whether all are finite; in fp16 this waits for the device."""
        if not self._scaler.is_enabled():
            return True
        before = self._scaler.get_scale()
        self._scaler.unscale_(self._optimizer)
        # Here and not after the step: SAM computes gradients twice a step.
        self._scaler.update()
        return bool(self._scaler.get_scale() >= before)

    def state_dict(self) -> dict[str, Any]:
        """The scale; empty without one."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
