"""Probabilities that mean what they say: one temperature for a model's logits, and how far off they are."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

_BINS = 15

logger = logging.getLogger(__name__)


def _class_margins(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None]) - logits


def _label_margins(logits: Tensor, targets: Tensor) -> Tensor:
    return (2 * targets.double() - 1) * logits


# By task: how far (N, C) the truth is ahead, and the negative log likelihood of such margins. A temperature divides
# margins as it does logits.
_LIKELIHOODS: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "classification": (_class_margins, lambda margins: (-margins).logsumexp(1).mean()),
    "multilabel": (_label_margins, lambda margins: F.softplus(-margins).mean()),
}

#: Tasks whose answers are probabilities.
CALIBRATED_TASKS = tuple(_LIKELIHOODS)


def fit_temperature(task: str, logits: Tensor, targets: Tensor) -> float:
    """The temperature by which logits are to be divided, so that targets are most likely.

    Guo et al.: On Calibration of Modern Neural Networks, ICML 2017. Found by L-BFGS in double precision. It leaves
    every label as it is.

    Args:
        task: One of ``CALIBRATED_TASKS``.
        logits: (N, C) float, of images that the model was not fitted to.
        targets: (N,) int64 class indices, or (N, C) float of zeros and ones.

    Returns:
        A number above 0. It is 1, which changes nothing, where no temperature is best: the targets have every time
        the largest logit (the likelihood would grow without end), or logits speak against them on the whole.
    """
    margins_of, loss_of = _LIKELIHOODS[task]
    margins = margins_of(logits.double(), targets)
    # The likelihood is concave in 1 / temperature; these are its slopes at infinity and at zero.
    if margins.min() >= 0 or margins.mean() <= 0:
        why = "every answer on validation is right" if margins.min() >= 0 else "the model is no better than chance"
        logger.info("no temperature is fitted: %s", why)
        return 1.0
    # In units of the margins, so that the search starts near its end however large the logits are.
    scale = margins.abs().mean()
    margins = margins / scale
    log_sharpness = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_sharpness], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(margins * log_sharpness.exp())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (scale / log_sharpness.detach().exp()).item()


def calibration_error(task: str, logits: Tensor, targets: Tensor) -> float:
    """Expected calibration error (ECE) in 15 bins of equal width: how far probabilities are from frequencies.

    Of a classification the probability of the likeliest class counts, against how often that class is right; of a
    multilabel task every class's probability, against how often images have the class.

    Args:
        task: One of ``CALIBRATED_TASKS``.
        logits: (N, C) float.
        targets: (N,) int64 class indices, or (N, C) float of zeros and ones.
    """
    # Not torchmetrics 1.9: equal to 2e-6, but slower (1,000 x 10: 0.31 against 0.23 ms, multilabel 0.47 against 0.05).
    if task == "classification":
        confidences, labels = logits.softmax(1).max(1)
        hits = labels == targets
    else:
        confidences, hits = logits.sigmoid().flatten(), targets.flatten()
    bins = (confidences * _BINS).ceil().long().sub(1).clamp(min=0)
    gaps = confidences.new_zeros(_BINS).scatter_add(0, bins, hits.to(confidences.dtype) - confidences)
    return gaps.abs().sum().item() / len(confidences)
