"""Strategies that change each field in turn, for ``benchmarks.gpu_check``."""

from typing import Any

_THIRDS = {"lr_by": "thirds", "lower_lr_scale": 0.2, "middle_lr_scale": 0.4, "upper_lr_scale": 0.9}
_CUSTOM = {"augment": "custom", "crop_area": 0.5, "flip": 0.4, "rotate": 10.0, "colour": 0.2}

#: By name, the fields that differ from the default: one, with those without which it would have no effect, or some of
#: one kind. Together they change every field of a strategy.
CASES: dict[str, dict[str, Any]] = {
    "depth": {"depth": 1},
    "depth_from": {"depth": 2, "depth_from": "middle"},
    "parameters: norms": {"parameters": "norms"},
    "parameters: lora": {"parameters": "lora", "lora_rank": 2, "lora_alpha": 4.0},
    "unfreeze_epochs": {"unfreeze_epochs": 1.0},
    "reinit_blocks": {"reinit_blocks": 1},
    "probe_epochs": {"probe_epochs": 1, "probe_lr": 0.02},
    "loss: label_smoothing": {"loss": "label_smoothing", "label_smoothing": 0.2},
    "loss: focal": {"loss": "focal", "focal_gamma": 1.0},
    "loss: poly1": {"loss": "poly1", "poly1_epsilon": 2.0},
    "loss: mse": {"loss": "mse", "mse_weight": 2.0, "mse_target": 2.0},
    "class_weights": {"class_weights": "effective_number", "class_weights_beta": 0.9},
    "sampling": {"sampling": "balanced"},
    "distill_weight": {"distill_weight": 0.5, "distill_temperature": 3.0},
    "optimizer: adamw": {"optimizer": "adamw", "beta1": 0.8, "beta2": 0.99},
    "optimizer: nesterov": {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
    "optimizer: lamb": {"optimizer": "lamb"},
    "head_lr_scale": {"head_lr_scale": 3.0, "weight_decay": 0.1, "lr": 2e-3},
    "lr_by: thirds": _THIRDS,
    "lr_by: gradient": {"lr_by": "gradient"},
    "layer_decay": {"layer_decay": 0.8},
    "schedule: step": {"schedule": "step", "decay_rate": 0.2, "decay_epochs": 0.5},
    "schedule: plateau": {"schedule": "plateau", "patience_epochs": 2},
    "schedule: poly": {"schedule": "poly", "poly_power": 2.0},
    "warmup_steps": {"warmup_steps": 2, "warmup_lr": 0.1},
    "warmup_epochs": {"warmup_epochs": 0.5},
    "clip_grad": {"clip_grad": 1.0},
    "sam_rho": {"sam_rho": 0.05},
    "l2_sp": {"l2_sp": 0.01},
    "delta": {"delta": 0.01},
    "bss": {"bss": 0.001},
    "co_tuning": {"co_tuning": 1.0},
    "stochastic_norm": {"stochastic_norm": 0.5},
    "dropout": {"dropout": 0.2, "drop_path": 0.1},
    "ema": {"ema": 0.9},
    "swa_epochs": {"swa_epochs": 1},
    "batch_norm: frozen_stats": {"batch_norm": "frozen_stats"},
    "batch_norm: frozen": {"batch_norm": "frozen"},
    "augment: light": {"augment": "light"},
    "augment: strong": {"augment": "strong"},
    "augment: custom": {**_CUSTOM, "saturation": 0.2, "hue": 10.0, "erase": 0.3},
    "policy: auto": {"policy": "auto"},
    "policy: rand": {"policy": "rand", "policy_ops": 3, "policy_magnitude": 15.0},
    "policy: trivial": {"policy": "trivial"},
    "views": {"augment": "light", "views": 2},
    "mixup": {"mixup": 0.2, "mix_prob": 0.5},
    "cutmix": {"cutmix": 1.0},
    "image_scale": {"image_scale": 0.75},
    "grow_from": {"grow_from": 0.5},
    "tta": {"tta": "flip"},
}

#: Fields without a case of their own: they are changed in every step, or are of masks and boxes alone.
ELSEWHERE = {"batch_size", "epochs", "decoder_lr_scale"}

#: Fields whose steps wait for the device, as their descriptions say.
WAITING = {"bss"}
