"""Which fields of a strategy mean nothing for a model, its weights, a task or a study."""

from strategies import Choice, Fixed, FloatRange, Space, Strategy, shown_size
from trainers.models.source import ModelSource
from trainers.private_apis import BatchNorm
from trainers.tasks import TASKS


def unusable_fields(space: Space, source: ModelSource, task: str, has_teacher: bool) -> dict[str, str]:
    """Fields that are to be left out of a space, and why.

    Args:
        space: The space that would be searched.
        source: The model and its weights.
        task: Such as ``classification``.
        has_teacher: Whether the study has a teacher.

    Returns:
        Field names and reasons in a few words, only for fields that the space does not leave at their default.
    """
    reasons: dict[str, str] = {}
    if not has_teacher:
        reasons["distill_weight"] = "there is no teacher"
    if source.pretrained_classifier() is None:
        reasons["co_tuning"] = "the pretrained weights bring no classifier of their own"
    reasons |= TASKS[task].unusable
    if not any(isinstance(module, BatchNorm) for module in source.build(0).modules()):
        reasons |= dict.fromkeys(("batch_norm", "stochastic_norm"), f"{source.name} has no BatchNorm")
    if not source.can_drop_path():
        reasons["drop_path"] = f"{source.name} has no residual branches to leave out"
    smallest = shown_size(
        source.image_size, Strategy(image_scale=_least(space, "image_scale"), grow_from=_least(space, "grow_from")), 0
    )
    if not source.takes(smallest):
        reasons |= dict.fromkeys(("image_scale", "grow_from"), f"{source.name} cannot take images of {smallest} px")
    return {name: reason for name, reason in reasons.items() if _is_set(space, name)}


def _least(space: Space, name: str) -> float:
    match space.get(name):
        case Fixed(value=value):
            return float(value)
        case FloatRange(low=low):
            return low
        case Choice(choices=choices):
            return float(min(choices))
        case _:
            return 1.0


def _is_set(space: Space, name: str) -> bool:
    return space.get(name, Fixed(getattr(Strategy(), name))) != Fixed(getattr(Strategy(), name))
