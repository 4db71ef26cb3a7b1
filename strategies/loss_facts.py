"""Facts about losses that need no torch to be read."""

#: The losses that each task can be trained with; the first is its default.
TASK_LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("cross_entropy", "label_smoothing", "focal", "poly1", "bce", "mse"),
    "multilabel": ("bce", "focal"),
    "regression": ("mse", "l1", "huber"),
    "segmentation": (
        "cross_entropy",
        "dice",
        "focal",
        "lovasz",
        "cross_entropy+dice",
        "focal+dice",
        "cross_entropy+lovasz",
    ),
    "detection": ("detector",),
}

#: The class of pixels that segmentation does not learn from, in its targets.
IGNORED = 255

#: The fields of a strategy that make up its loss.
LOSS_FIELDS = (
    "loss",
    "label_smoothing",
    "focal_gamma",
    "poly1_epsilon",
    "mse_weight",
    "mse_target",
    "class_weights",
    "class_weights_beta",
)
