"""Which fields of a strategy have an effect only with certain values of other fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.optimizer_facts import optimizer_parameters


@dataclass(frozen=True, slots=True)
class Condition:
    """When a field has an effect.

    Args:
        controllers: The fields that it depends on.
        holds: Whether the field has an effect, from the values of its controllers.
        words: The condition in words, for the docs.
    """

    controllers: tuple[str, ...]
    holds: Callable[..., bool]
    words: str


def _is(name: str, *values: str) -> Condition:
    return Condition((name,), lambda value: value in values, f"`{name}` is {' or '.join(values)}")


def _above_zero(*names: str) -> Condition:
    words = " or ".join(f"`{name}`" for name in names)
    return Condition(names, lambda *values: any(value > 0 for value in values), f"{words} is above 0")


def _optimizer_has(parameter: str) -> Condition:
    return Condition(
        ("optimizer",),
        lambda name: parameter in optimizer_parameters(name),
        f"`optimizer` uses {parameter}",
    )


_DEEP = _above_zero("depth")
_BY_THIRDS = Condition(
    ("depth", "lr_by"), lambda depth, lr_by: depth > 0 and lr_by == "thirds", "`depth` is above 0 and `lr_by` is thirds"
)
_LORA = Condition(
    ("depth", "parameters"),
    lambda depth, parameters: depth > 0 and parameters == "lora",
    "`depth` is above 0 and `parameters` is lora",
)

#: The condition of each field that depends on others; a field that is missing here always has an effect.
CONDITIONS: dict[str, Condition] = {
    **dict.fromkeys(
        (
            "depth_from",
            "parameters",
            "unfreeze_epochs",
            "batch_norm",
            "lr_by",
            "l2_sp",
            "delta",
            "bss",
            "co_tuning",
            "drop_path",
        ),
        _DEEP,
    ),
    # A block that stays frozen must not be random.
    "reinit_blocks": Condition(
        ("depth", "depth_from"),
        lambda depth, depth_from: depth > 0 and depth_from == "head",
        "`depth` is above 0 and `depth_from` is head",
    ),
    **dict.fromkeys(("lora_rank", "lora_alpha"), _LORA),
    "probe_lr": _above_zero("probe_epochs"),
    "label_smoothing": _is("loss", "label_smoothing"),
    "focal_gamma": _is("loss", "focal", "focal+dice"),
    "poly1_epsilon": _is("loss", "poly1"),
    **dict.fromkeys(("mse_weight", "mse_target"), _is("loss", "mse")),
    "class_weights_beta": _is("class_weights", "effective_number"),
    "distill_temperature": _above_zero("distill_weight"),
    **{name: _optimizer_has(name) for name in ("momentum", "beta1", "beta2", "nesterov")},
    "layer_decay": Condition(
        ("depth", "lr_by"),
        lambda depth, lr_by: depth > 0 and lr_by == "decay",
        "`depth` is above 0 and `lr_by` is decay",
    ),
    **dict.fromkeys(("lower_lr_scale", "middle_lr_scale", "upper_lr_scale"), _BY_THIRDS),
    "decay_rate": _is("schedule", "step", "multistep", "plateau"),
    "decay_epochs": _is("schedule", "step"),
    "patience_epochs": _is("schedule", "plateau"),
    "poly_power": _is("schedule", "poly"),
    "warmup_epochs": Condition(("warmup_steps",), lambda steps: steps == 0, "`warmup_steps` is 0"),
    "warmup_lr": Condition(
        ("warmup_steps", "warmup_epochs", "schedule"),
        lambda steps, epochs, schedule: steps > 0 or epochs > 0 or schedule == "one_cycle",
        "there is a warm-up",
    ),
    "stochastic_norm": Condition(
        ("depth", "batch_norm"),
        lambda depth, batch_norm: depth > 0 and batch_norm == "train",
        "`depth` is above 0 and `batch_norm` is train",
    ),
    "ema": Condition(("swa_epochs",), lambda epochs: epochs == 0, "`swa_epochs` is 0"),
    **dict.fromkeys(("crop_area", "flip", "rotate", "colour", "saturation", "hue", "erase"), _is("augment", "custom")),
    **dict.fromkeys(("policy_ops", "policy_magnitude"), _is("policy", "rand")),
    "views": Condition(
        ("augment", "policy"),
        lambda augment, policy: (augment, policy) != ("none", "none"),
        "`augment` or `policy` is not none",
    ),
    "mix_prob": _above_zero("mixup", "cutmix"),
}


def has_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the field ``name`` changes training, given the ``values`` of the fields that control it."""
    condition = CONDITIONS.get(name)
    return condition is None or condition.holds(*(values[controller] for controller in condition.controllers))
