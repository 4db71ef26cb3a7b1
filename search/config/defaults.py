"""Default space and presets of a study, and the metrics and decoders of each task."""

from typing import Any

DEFAULT_SPACE: dict[str, Any] = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "layer_decay": {"low": 0.4, "high": 1.0},
    "weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "batch_norm": {"choices": ["train", "frozen_stats"]},
    "epochs": 5,
    "batch_size": 64,
    "warmup_epochs": 0.5,
    "augment": "none",
}


DEFAULT_PRESETS: dict[str, dict[str, Any]] = {
    "linear_probe": {"depth": 0, "lr": 3e-3},
    "last_block": {"depth": 1, "lr": 1e-3},
    # Without layer decay, which is better on convolutional networks; transformers need the next preset.
    "full": {"depth": 1.0, "lr": 2e-3},
    "full_layer_decay": {"depth": 1.0, "lr": 2e-3, "layer_decay": 0.8},
}


# The metrics of each task, the default first; listed here so that torch need not be imported.
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "macro_f1", "loss"),
    "multilabel": ("mean_average_precision", "macro_f1", "micro_f1", "exact_match", "loss"),
    "regression": ("rmse", "mae", "r2", "spearman", "loss"),
    "segmentation": ("mean_iou", "dice", "pixel_accuracy", "loss"),
    "detection": ("map", "map50", "mar"),
}


# The decoders of tasks whose targets lie in the image, the default first; listed here for the same reason.
TASK_DECODERS: dict[str, tuple[str, ...]] = {
    "segmentation": ("unet", "fpn", "deeplabv3plus", "fcn"),
    "detection": ("faster_rcnn", "retinanet", "fcos"),
}
