"""Learning-rate factors of blocks from the size of their gradients relative to their weights (Auto-RGN)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from strategies.errors import ConfigError, TrialError, nearest


def gradient_ratios(model: nn.Module, blocks: Sequence[Sequence[str]]) -> Tensor:
    """The norm of each block's gradient divided by the norm of its parameters, after a backward pass.

    Norms are Euclidean, over one vector of all the block's parameters that have a gradient. Parameters without a
    gradient, such as frozen ones, count in neither norm.

    Args:
        model: After ``backward()``, before gradients are clipped or cleared.
        blocks: Names of each block's parameters.

    Returns:
        (len(blocks),) float32 on the model's device: 0 for a block whose gradient is zero or missing, infinite for a
        block with a gradient whose parameters are all zero, NaN for a block whose gradient is not finite.

    Raises:
        ConfigError: The model has no parameter of such a name.
    """
    params = dict(model.named_parameters())
    unknown = next((name for names in blocks for name in names if name not in params), None)
    if unknown is not None:
        raise ConfigError(f"{unknown!r} is no parameter of {type(model).__name__}; {nearest(unknown, params)}")
    device = next(iter(params.values())).device
    return torch.stack([_ratio([params[name] for name in names], device) for names in blocks])


class RelativeGradients:
    """Averages :func:`gradient_ratios` over batches and turns them into learning-rate factors.

    Lee, Chen, Tajwar, Kumar, Yao, Liang, Finn: Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, ICLR
    2023, method Auto-RGN. The paper has a factor for each tensor: before each epoch its code averages the tensor's
    ratio over five batches and divides by the largest; BatchNorm is left as it is. Here a whole block has one factor,
    so that a few small tensors do not set the scale (biases begin near zero, where any gradient is relatively large).
    The caller decides which parameters belong to a block, such as BatchNorm's or the head's, and how often factors are
    computed.

    Example::

        ratios = RelativeGradients(model, [block.params for block in split_blocks(model).body])
        for images, targets in batches:
            model.zero_grad()
            loss(model(images), targets).backward()
            ratios.add()
        factors = ratios.factors()

    Args:
        model: The model whose gradients are read.
        blocks: Names of each block's parameters.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Sequence[str]]) -> None:
        self._model = model
        self._blocks = blocks
        self._batches: list[Tensor] = []

    def add(self) -> None:
        """Add the gradients of one batch; call this after ``backward()``. It does not wait for a GPU.

        Raises:
            ConfigError: The model has no parameter of a name in the blocks.
        """
        self._batches.append(gradient_ratios(self._model, self._blocks))

    def factors(self) -> list[float]:
        """A factor in [0, 1] for each block: its mean ratio over the batches, scaled so that the largest is 1.

        Blocks without a gradient get 0. A block with a gradient whose parameters are all zero gets 1, because its ratio
        is infinite; the others are divided by the largest finite ratio. If no block has a gradient, all get 1, because
        nothing distinguishes them.

        Raises:
            TrialError: A gradient is not finite.
            ValueError: No batch was added.
        """
        if not self._batches:
            raise ValueError("no batch was added, so there are no gradients to compare")
        means = torch.stack(self._batches).mean(0).cpu()
        if means.isnan().any():
            block = int(means.isnan().nonzero()[0])
            raise TrialError(f"the gradient of block {block} is not finite, so it cannot be compared with its weights")
        if not means.any():
            return [1.0] * len(means)
        known = means.isfinite()
        # If only blocks of zero weights have a gradient, all other ratios are zero.
        largest = means[known].max() if means[known].any() else 1.0
        return torch.where(known, means / largest, 1.0).tolist()


def _ratio(params: list[nn.Parameter], device: torch.device) -> Tensor:
    trained = [param for param in params if param.grad is not None]
    if not trained:
        return torch.zeros((), device=device)
    grad = nn.utils.get_total_norm([cast(Tensor, param.grad) for param in trained]).float()
    size = nn.utils.get_total_norm([param.detach() for param in trained]).float()
    ratio = torch.where(grad == 0, 0.0, grad / size)
    # An infinite gradient must not look like a block of zero weights, whose ratio is infinite too.
    return torch.where(grad.isfinite(), ratio, torch.nan)
