"""A model's outputs in the order of the classes of other data, which may lack some of its classes and have others."""

from collections.abc import Callable, Mapping, Sequence
from math import log

import torch
from torch import Tensor, nn

# The probability that a model is taken to give a class which it does not know: wrong, with a loss that is finite.
_UNKNOWN = 1e-6
# Tasks whose answer is one class, so that a class which the data lacks is a wrong answer.
_ONE_ANSWER = ("classification", "segmentation", "detection")


def answers_for(task: str, classes: Sequence[str], *models: Sequence[str]) -> tuple[str, ...]:
    """The classes among which models answer on some data: the data's, in their order, then any others of the models.

    Args:
        task: The task of data and models.
        classes: Class names of the data, or names of its numbers.
        models: The same of each model.

    Returns:
        The data's classes alone, if each class (or number) is an answer by itself.
    """
    if task not in _ONE_ANSWER:
        return tuple(classes)
    others = {name for model in models for name in model} - set(classes)
    return (*classes, *sorted(others))


def in_order(task: str, outputs: Tensor, known: Sequence[str], wanted: Sequence[str], usual: Tensor) -> Tensor:
    """A model's outputs in the order of other classes. A class that the model does not know is never its answer.

    Args:
        task: The model's task.
        outputs: (N, C, ...) logits or numbers, or (N, K, 6) rows of a detector, by the classes of the model.
        known: The model's C classes.
        wanted: The W classes that are wanted, from :func:`answers_for`.
        usual: (W,) what a regression is taken to say about a number that it does not give: the number's mean.

    Returns:
        (N, W, ...) logits or numbers, or (N, K, 6) rows.
    """
    if tuple(known) == tuple(wanted):
        return outputs
    return _ORDERED[task](outputs, known, wanted, usual)


class InOrder(nn.Module):
    """A model for one class a pixel or an image, whose logits are put in order by :func:`in_order`.

    Args:
        model: Gives logits (N, C, ...).
        task: Its task.
        known: Its C classes.
        wanted: The classes that are wanted.
    """

    def __init__(self, model: nn.Module, task: str, known: Sequence[str], wanted: Sequence[str]) -> None:
        super().__init__()
        self._model, self._task, self._known, self._wanted = model, task, known, wanted

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, W, ...) for images (N, C, S, S)."""
        return in_order(self._task, self._model(images).float(), self._known, self._wanted, torch.empty(0))


def _of_classes(logits: Tensor, known: Sequence[str], wanted: Sequence[str], usual: Tensor) -> Tensor:
    unknown = logits.logsumexp(1) + log(_UNKNOWN)
    return torch.stack([logits[:, known.index(name)] if name in known else unknown for name in wanted], dim=1)


def _of_labels(logits: Tensor, known: Sequence[str], wanted: Sequence[str], usual: Tensor) -> Tensor:
    unknown = torch.full_like(logits[:, 0], log(_UNKNOWN))
    return torch.stack([logits[:, known.index(name)] if name in known else unknown for name in wanted], dim=1)


def _of_numbers(outputs: Tensor, known: Sequence[str], wanted: Sequence[str], usual: Tensor) -> Tensor:
    columns = [
        outputs[:, known.index(name)] if name in known else usual[place].expand(len(outputs))
        for place, name in enumerate(wanted)
    ]
    return torch.stack(columns, dim=1)


def _of_boxes(rows: Tensor, known: Sequence[str], wanted: Sequence[str], usual: Tensor) -> Tensor:
    # The last place is for unused rows, whose class is -1.
    places = torch.tensor([*(wanted.index(name) for name in known), -1], dtype=rows.dtype)
    rows = rows.clone()
    rows[..., 4] = places[rows[..., 4].long()]
    return rows


_Ordered = Callable[[Tensor, Sequence[str], Sequence[str], Tensor], Tensor]
_ORDERED: Mapping[str, _Ordered] = {
    "classification": _of_classes,
    "segmentation": _of_classes,
    "multilabel": _of_labels,
    "regression": _of_numbers,
    "detection": _of_boxes,
}
