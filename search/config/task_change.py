"""Another task than a study file's own: what only the file's task can use gives way."""

from collections.abc import Mapping
from typing import Any

from search.config.defaults import TASK_DECODERS, TASK_METRICS
from strategies import TASK_LOSSES


def for_task(values: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """The values of a study file, without the losses, metric and decoder that cannot serve the task.

    They then follow from the task. A file's own task is left as it is, so that a wrong loss beside it is refused.

    Args:
        values: Sections and keys, with ``task``.
        task: The task that is asked for.
    """
    found = dict(values)
    if task == values.get("task") or not isinstance(task, str) or task not in TASK_LOSSES:
        return found
    if found.get("metric") not in TASK_METRICS[task]:
        found.pop("metric", None)
    model = found.get("model")
    if isinstance(model, Mapping) and model.get("decoder") not in TASK_DECODERS.get(task, ()):
        found["model"] = {key: value for key, value in model.items() if key != "decoder"}
    if "strategy" in found:
        found["strategy"] = with_losses_of(task, found["strategy"])
    if isinstance(found.get("presets"), Mapping):
        found["presets"] = {name: with_losses_of(task, preset) for name, preset in found["presets"].items()}
    return found


def with_losses_of(task: Any, fields: Any) -> Any:
    """A space or a preset, without the losses that cannot train the task.

    Args:
        task: The task.
        fields: The fields of a strategy as a study file has them; what is no mapping is returned as it is.
    """
    loss = fields.get("loss") if isinstance(fields, Mapping) else None
    choices = loss.get("choices") if isinstance(loss, Mapping) else [loss]
    if loss is None or not isinstance(choices, list) or not isinstance(task, str) or task not in TASK_LOSSES:
        return fields
    kept = [name for name in choices if name in TASK_LOSSES[task]]
    if len(kept) == len(choices):
        return fields
    others = {name: value for name, value in fields.items() if name != "loss"}
    if len(kept) > 1:
        return {**others, "loss": {**loss, "choices": kept}}
    # Of none that is left, the task's default is taken.
    return {**others, "loss": kept[0]} if kept else others
