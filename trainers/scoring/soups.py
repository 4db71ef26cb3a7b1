"""Mixing the weights of several models of one architecture, without training: interpolations and soups."""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from strategies import Strategy, WeightsError, entries_of_last_blocks, make_plan, refit_batch_norm, split_blocks
from trainers.data import Split
from trainers.device import Device
from trainers.memory import Fitting
from trainers.models import Normalise

State = Mapping[str, Tensor]


def interpolate(start: State, end: State, alpha: float, kept: Collection[str] = ()) -> dict[str, Tensor]:
    """The point between two models' weights: ``start`` at ``alpha`` 0, ``end`` at 1.

    Wortsman et al.: Robust Fine-Tuning of Zero-Shot Models (WiSE-FT), CVPR 2022.

    Args:
        start: State dict at the start of a fine-tuning.
        end: State dict at its end.
        alpha: Share of ``end``.
        kept: Entries that are taken from ``end`` for any ``alpha``, as are counters and other whole numbers.

    Raises:
        WeightsError: The state dicts are not of one architecture.
    """
    check_alike(start, end)
    # Both forms of lerp leave equal values equal bit for bit, which stale_norms relies on.
    return {
        name: torch.lerp(start[name], tensor, alpha) if tensor.is_floating_point() and name not in kept else tensor
        for name, tensor in end.items()
    }


def uniform_soup(members: Iterable[State]) -> dict[str, Tensor]:
    """The mean of models' weights; counters are taken from the first model.

    Wortsman et al.: Model Soups, ICML 2022.

    Args:
        members: At least one state dict; only one at a time is held.

    Raises:
        WeightsError: Two state dicts are not of one architecture.
    """
    soup: dict[str, Tensor] = {}
    for count, member in enumerate(members):
        soup = _stir(soup, member, count)
    return soup


def greedy_soup(
    members: Iterable[State], score: Callable[[State], float], lower_is_better: bool
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """The mean of the models that do not make the mean worse, taken in their order.

    Wortsman et al.: Model Soups, ICML 2022, Recipe 1: the first model is in. Each next model stays if, on held-out
    data, the mean with it scores no worse than the mean without it.

    Args:
        members: State dicts from the best model to the worst, at least one; only one at a time is held.
        score: The score of weights; a score that is not a number is never an improvement.
        lower_is_better: Whether the score is an error.

    Returns:
        The mean, and the places of its members among ``members``.

    Raises:
        WeightsError: Two state dicts are not of one architecture.
    """
    soup: dict[str, Tensor] = {}
    taken: list[int] = []
    best = 0.0
    for place, member in enumerate(members):
        mixed = _stir(soup, member, len(taken))
        found = score(mixed)
        if not taken or (found <= best if lower_is_better else found >= best):
            soup, best = mixed, found
            taken.append(place)
    return soup, tuple(taken)


def check_alike(first: State, second: State) -> None:
    """Refuse to mix state dicts with different names or shapes.

    Raises:
        WeightsError: The state dicts differ; the message names the first entry that differs.
    """
    for name in (*first, *second):
        if name not in first or name not in second or first[name].shape != second[name].shape:
            raise WeightsError(f"weights of different models cannot be mixed: {name} is not the same in both")


def _stir(soup: State, member: State, count: int) -> dict[str, Tensor]:
    """The mean of one more model and ``count`` models, whose mean is ``soup``."""
    return dict(member) if count == 0 else interpolate(member, soup, count / (count + 1))


def random_at_start(model: nn.Module, strategy: Strategy) -> frozenset[str]:
    """Entries of a state dict that are random at a fine-tuning's start, so that their start is not worth mixing in.

    These are the head's entries, unless the head was fitted first (``probe_epochs``), and the entries of blocks that
    were drawn anew (``reinit_blocks``).

    Args:
        model: A timm classifier.
        strategy: How the model was fine-tuned.

    Raises:
        ConfigError: The model's blocks are not known.
    """
    anew = min(strategy.reinit_blocks, make_plan(model, strategy).depth)
    drawn = entries_of_last_blocks(model, anew) if anew > 0 else frozenset()
    return drawn if strategy.probe_epochs > 0 else drawn | set(split_blocks(model).head.params)


def load_mixed(
    model: nn.Module,
    mixed: State,
    reference: State,
    split: Split,
    batch_size: int,
    normalise: Normalise,
    seed: int,
    device: Device,
) -> None:
    """Load mixed weights and fit the BatchNorm statistics that they lack, by one pass over unvaried images.

    Statistics that all members agree on, such as those of frozen blocks, stay; if members agree on all statistics, no
    image is read. Dropout is off in that pass.

    Args:
        model: A model on the device, changed in place; it is left in eval mode, except for the fitted modules.
        mixed: From :func:`interpolate` or a soup.
        reference: One of the members.
        split: The training images.
        batch_size: Images a batch; a last, smaller batch is left out.
        normalise: Makes the model's input.
        seed: Draws the order of images, because each batch of a sorted set would show a single class.
        device: Where to compute.
    """
    model.load_state_dict(mixed)
    model.eval()
    for norm in stale_norms(model, mixed, reference):
        norm.train()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    order = order[: max(1, len(split) // batch_size) * batch_size]

    def refit(parts: int) -> None:
        batches = split.batches(order, batch_size, device.torch)
        with device.autocast():
            refit_batch_norm(model, (normalise(images.float().div_(255)) for images, _ in batches))

    Fitting(1).do(refit)


def stale_norms(model: nn.Module, mixed: State, reference: State) -> list[nn.Module]:
    """Modules whose running statistics were mixed from different ones: their mean differs from each member's."""
    return [
        module
        for name, module in model.named_modules()
        if any(
            not torch.equal(mixed[entry], reference[entry])
            for entry in (f"{name}.running_mean", f"{name}.running_var")
            if entry in mixed
        )
    ]
