"""Calibrated probabilities: one temperature for a model's logits, and the error of the probabilities."""

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.tasks import Groups, units_of

_BINS = 15
# Draws of noise for an interval, and the errors that are tried for it.
_DRAWS, _POSSIBLE = 1000, 81

# A bin of fewer units is taken for one of so many, since its part of the error is small.
_FEW = 4

logger = logging.getLogger(__name__)


def _class_margins(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets[:, None]) - logits


def _label_margins(logits: Tensor, targets: Tensor) -> Tensor:
    return (2 * targets.double() - 1) * logits


# By task: the margins (N, C) by which the true answer leads, and the negative log likelihood of margins. A temperature
# divides margins as it divides logits.
_LIKELIHOODS: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "classification": (_class_margins, lambda margins: (-margins).logsumexp(1).mean()),
    "multilabel": (_label_margins, lambda margins: F.softplus(-margins).mean()),
}

#: Tasks whose answers are probabilities.
CALIBRATED_TASKS = tuple(_LIKELIHOODS)


def fit_temperature(task: str, logits: Tensor, targets: Tensor) -> float:
    """The temperature that makes the targets most likely if logits are divided by it.

    Guo et al.: On Calibration of Modern Neural Networks, ICML 2017. Found by L-BFGS in double precision. Dividing by it
    changes no label.

    Args:
        task: One of ``CALIBRATED_TASKS``.
        logits: (N, C) float, for images that the model was not fitted to.
        targets: (N,) int64 class indices, or (N, C) float of zeros and ones.

    Returns:
        A number above 0. It is 1, which changes nothing, if no temperature is best: every target has the largest logit,
        so that the likelihood would grow without end, or the logits are on the whole against the targets.
    """
    margins_of, loss_of = _LIKELIHOODS[task]
    margins = margins_of(logits.double(), targets)
    # The likelihood is concave in 1 / temperature; these are its slopes at infinity and at zero.
    if margins.min() >= 0 or margins.mean() <= 0:
        why = "every answer on validation is right" if margins.min() >= 0 else "the model is no better than chance"
        logger.info("no temperature is fitted: %s", why)
        return 1.0
    # In units of the margins, so that the search starts near its end for logits of any size.
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
    """Expected calibration error (ECE) in 15 bins of equal width: the distance of probabilities from frequencies.

    In classification, the probability of the likeliest class is compared with how often that class is right. In a
    multilabel task, every class's probability is compared with how often images have the class.

    Args:
        task: One of ``CALIBRATED_TASKS``.
        logits: (N, C) float.
        targets: (N,) int64 class indices, or (N, C) float of zeros and ones.
    """
    # Not torchmetrics 1.9: equal to 2e-6, but slower (1,000 x 10: 0.31 against 0.23 ms, multilabel 0.47 against 0.05).
    gaps, bins = _gaps(task, logits, targets)
    return gaps.new_zeros(_BINS).scatter_add(0, bins.flatten(), gaps.flatten()).abs().sum().item() / gaps.numel()


def _gaps(task: str, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """By image and answer, whether it is right less its probability, and its bin, each (N, A)."""
    if task == "classification":
        confidences, labels = logits.softmax(1).max(1, keepdim=True)
        hits = labels == targets[:, None]
    else:
        confidences, hits = logits.sigmoid(), targets
    bins = (confidences * _BINS).ceil().long().sub(1).clamp(min=0)
    return hits.to(confidences.dtype) - confidences, bins


def calibration_interval(
    task: str, logits: Tensor, targets: Tensor, groups: Groups | None = None
) -> tuple[float, float]:
    """A 95% interval of the true calibration error, over images or whole groups.

    The error measured on few images is too high by chance, even for perfect probabilities, so that no bootstrap of the
    measured error holds the true one. Here an error belongs to the interval if the measured error is among the central
    95% of those that it would give with the noise of so many images. The gaps of the bins that make up an error are
    taken to be in proportion to the measured gaps, or to the noise of each bin; the interval holds both cases.

    Args:
        task: One of ``CALIBRATED_TASKS``.
        logits: (N, C) float.
        targets: (N,) int64 class indices, or (N, C) float of zeros and ones.
        groups: (N,) group of each image; None if all images are independent.

    Returns:
        Both ends; not numbers if there is one image, or one group.
    """
    # Only here: the import takes a second, which workers need not wait for.
    from scipy.stats import t

    gaps, bins = (part.numpy() for part in _gaps(task, logits.double(), targets))
    units = units_of(len(gaps), groups)
    count = int(units.max()) + 1
    if count < 2:
        return float("nan"), float("nan")
    of_images = np.zeros((len(gaps), _BINS))
    np.add.at(of_images, (np.arange(len(gaps))[:, None], bins), gaps / gaps.size)
    measured = of_images.sum(0)
    of_units = np.zeros((count, _BINS))
    np.add.at(of_units, units, of_images - measured / len(gaps))
    # Wider for few units, as Student's t is, bin by bin: a bin's noise is known from the units that have images in it.
    is_in = np.zeros((count, _BINS), dtype=bool)
    is_in[np.repeat(units, bins.shape[1]), bins.ravel()] = True
    known = np.maximum(is_in.sum(0), min(_FEW, count))
    spread = t.ppf(0.975, known - 1) / t.ppf(0.975, np.inf) * np.sqrt(known / (known - 1))
    noise = np.random.default_rng(0).standard_normal((_DRAWS, count)) @ of_units * spread
    error, deviations = np.abs(measured).sum(), noise.std(0)
    if error == 0 or deviations.sum() == 0:
        return float(error), float(error)
    possible = np.linspace(0, min(2 * error, 1.0), _POSSIBLE)
    held: list[float] = []
    for shape in (measured / error, np.where(measured < 0, -1, 1) * deviations / deviations.sum()):
        ends = [np.quantile(np.abs(one * shape + noise).sum(1), (0.025, 0.975)) for one in possible]
        held += [one for one, (low, high) in zip(possible.tolist(), ends, strict=True) if low <= error <= high]
    return (min(held), max(held)) if held else (0.0, 0.0)
