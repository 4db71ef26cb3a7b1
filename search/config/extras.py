"""Whether the packages are installed that a study needs and that do not come with every installation."""

from search.config.checks import values_of
from search.config.study import StudyConfig
from strategies import check_installed

# What tasks take from the extra "dense".
_DENSE = {
    "segmentation": ("segmentation_models_pytorch", "pycocotools"),
    "detection": ("faster_coco_eval",),
}


def check_extras(config: StudyConfig) -> None:
    """Refuse a study whose task or whose strategies need a package that is not installed.

    Raises:
        ConfigError: A package is missing; the message names the extra that installs it.
    """
    check_installed(f"task: {config.task}", "dense", *_DENSE.get(config.task, ()))
    # Presets need no check: they are moved into the space.
    if "lora" in values_of(config.space(), "parameters"):
        check_installed("strategy.parameters: lora", "lora", "peft")
