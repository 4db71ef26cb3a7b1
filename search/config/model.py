"""The configuration's section ``model``: which model, from which weights."""

from typing import Any

from pydantic import Field, field_validator

from search.config.defaults import TASK_DECODERS
from search.config.limits import at_home
from search.config.section import Section, Text, problems, refuse_twice

WEIGHTS_PACKAGES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class ModelConfig(Section):
    """Which model, or which models to choose from, and from which weights."""

    name: Text | tuple[Text, ...] = Field(
        "resnet18",
        description="any timm classifier with a group_matcher, or ZOO:NAME with the zoo torchvision, transformers or "
        "module, or a list of them",
    )
    decoder: Text | None = Field(
        None,
        description="decoder on the model's feature maps, by default the first of the task's: "
        + "; ".join(f"{task}: {', '.join(names)}" for task, names in TASK_DECODERS.items()),
    )
    in_chans: int = Field(3, ge=1, le=1024, description="channels of the images: 1 for grey, 3 for RGB, or any other")
    weights: tuple[str, ...] = Field(
        ("hub",),
        description="the first available of: hub, embedded, none, torchvision:IMAGENET1K_V2, "
        "package:efficientnet-lite0, a file, models:/name@alias, runs:/id/path",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The models to choose from, as they were listed."""
        return (self.name,) if isinstance(self.name, str) else self.name

    @field_validator("name", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return _bare(value)
        if not value or not all(isinstance(name, str) and name for name in value):
            raise problems(f"model.name: {list(value)!r} is not a model, nor a list of at least one")
        names = tuple(map(_bare, value))
        refuse_twice("model.name", names)
        return names if len(names) > 1 else names[0]

    @field_validator("weights", mode="before")
    @classmethod
    def _known_forms(cls, value: Any) -> tuple[str, ...]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not listed:
            raise problems(f"model.weights: {value!r} is not one form of weights, nor a list of them")
        found = [f"model.weights: {message}" for form in listed if (message := weights_problem(form))]
        if "none" in listed[:-1]:
            found.append(f"model.weights: {list(listed)!r}: what stands after none is never tried, put none last")
        if found:
            raise problems(*found)
        return tuple(map(at_home, listed))


def _bare(name: Any) -> Any:
    """The name, for timm's models without the zoo: studies name them so."""
    return name.removeprefix("timm:") if isinstance(name, str) else name


def weights_problem(form: Any) -> str | None:
    """What is wrong with a form of weights; None for a valid form."""
    packages = tuple(f"package:{name}" for name in WEIGHTS_PACKAGES)
    if isinstance(form, str):
        if form in ("hub", "embedded", "none", *packages) or form.lower().endswith(WEIGHTS_SUFFIXES):
            return None
        if form.startswith("torchvision:") and form != "torchvision:":
            return None
        if form.startswith(("models:/", "runs:/")) and len(form.split(":/", 1)[1]) > 0:
            return None
    files = ", ".join(WEIGHTS_SUFFIXES)
    allowed = f"hub, embedded, none, {', '.join(packages)}, torchvision:..., a file ({files}), models:/... or runs:/..."
    return f"{form!r} is not one of {allowed}"
