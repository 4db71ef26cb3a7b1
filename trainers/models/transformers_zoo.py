"""Image classifiers of Hugging Face Transformers: ``transformers:google/vit-base-patch16-224``.

A name is a folder that ``save_pretrained`` wrote, a ``config.json``, a repository of the hub, or a type of model such
as ``vit``, which stands for its default configuration. Weights are read from safetensors alone, and no code is run
that does not come with the package.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from strategies import ConfigError, check_installed, first_line, nearest
from trainers.hub import HubError, Progress, repository_file
from trainers.models.adopted import Adopted, AdoptingZoo, adopt
from trainers.models.zoo import Facts, Listed, Shape

_RGB = 3
_CONFIG, _IMAGES, _WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"


class _Methods(Adopted):
    how: dict[str, Any]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) for images (B, C, H, W)."""
        outputs: Any = super().forward(pixel_values=images, return_dict=True, **self.how)  # type: ignore[misc]
        logits: Tensor = outputs.logits
        return logits


class TransformersZoo(AdoptingZoo):
    """What ``AutoModelForImageClassification`` makes of a configuration."""

    prefix = "transformers"

    def check(self, name: str) -> None:
        """Refuse a name without a configuration of an image classifier, or if the package is missing."""
        check_installed("model.name: transformers:", "transformers", "transformers")
        _config(name)

    def listed(self) -> Sequence[Listed]:
        """The types of models, each with its default configuration."""
        check_installed("--zoo transformers", "transformers", "transformers")
        return [Listed(name) for name in _types()]

    def create(self, name: str, shape: Shape, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
        """The model of the configuration, in float32; its own dropout is off."""
        auto = _library().AutoModelForImageClassification
        model = auto.from_config(_config_for(name, shape, drop_path_rate), trust_remote_code=False, dtype=torch.float32)
        return _adopted(model, shape, drop_rate)

    def load(self, name: str, shape: Shape, state: Mapping[str, Tensor], twin: nn.Module) -> nn.Module:
        """The model by Transformers' own loading, which knows names of earlier versions."""
        given = dict(state)
        first = next((key for key, tensor in given.items() if tensor.ndim == 4 and tensor.shape[1] == _RGB), None)
        if first is not None:
            given[first] = adapt_input_conv(shape.in_chans, given[first])
        kind: Any = type(twin).__bases__[1]
        model, told = kind.from_pretrained(
            None,
            config=_config_for(name, shape, 0.0),
            state_dict=given,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
        adopted: Any = _adopted(model.train(), shape, 0.0)
        head = f"{adopted.zoo_layout.head}."
        other = [key for key, *_ in told["mismatched_keys"] if not key.startswith(head)]
        missing = [key for key in told["missing_keys"] if not key.startswith(head)]
        if other or missing:
            what = f"{len(missing)} weight tensors missing" if missing else f"{len(other)} of other sizes"
            raise ValueError(f"{what}, first: {sorted(missing or other)[0]}; is it of another architecture?")
        return adopted  # type: ignore[no-any-return]

    def facts(self, name: str, source: str = "") -> Facts:
        """From the configurations of the model and of its images, where there is one."""
        size = getattr(_of_images(_config(name)), "image_size", None)
        how: dict[str, Any] = {"image_size": size} if isinstance(size, int) else {}
        try:
            images = _file_of(name, _IMAGES)
        except HubError as error:
            raise ConfigError(f"model.name: transformers:{name}: {error}") from error
        if images is not None:
            told = json.loads(images.read_text())
            how |= {key: tuple(told[f"image_{key}"]) for key in ("mean", "std") if f"image_{key}" in told}
        return Facts(**how)

    def published(self, name: str, which: str | None, progress: Progress | None) -> tuple[str, Path]:
        """``model.safetensors`` of the folder or the repository."""
        if which is not None:
            raise HubError("weights of Transformers' models are chosen by the model's name")
        if name in _types():
            raise HubError(f"{name} is a type of model without weights; name a folder or a repository of the hub")
        path = _file_of(name, _WEIGHTS, progress)
        if path is None:
            raise HubError(f"{name} has no {_WEIGHTS}; weights are read from safetensors alone")
        return (f"file:{path}" if Path(name).exists() else f"hub:{name}"), path

    def code(self, name: str) -> Path | None:
        """The configuration."""
        return _file_of(name, _CONFIG)

    def moved(self, name: str, code: Path) -> str:
        """The configuration at another place."""
        return str(code)

    def packages(self, name: str) -> Sequence[str]:
        """The package itself."""
        return ("transformers",)


@cache
def _library() -> Any:
    """The package, without its bars and its remarks on classifiers that are drawn anew."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@cache
def _types() -> tuple[str, ...]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return tuple(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


@cache
def _file_of(name: str, file: str, progress: Progress | None = None) -> Path | None:
    """A file of the folder or the repository that is named; None if a folder has none.

    Raises:
        HubError: The hub does not give it.
    """
    if name in _types():
        return None
    place = Path(name).expanduser().absolute()
    if place.suffix == ".json":
        place = place if file == _CONFIG else place.with_name(file)
        return place if place.is_file() else None
    if place.is_dir():
        return place / file if (place / file).is_file() else None
    return repository_file(name, [file], progress)


def _config(name: str) -> Any:
    """The configuration of a name.

    Raises:
        ConfigError: There is none, or it is of no image classifier.
    """
    library, types = _library(), _types()
    is_place = "/" in name or name.endswith(".json")
    if name not in types and not is_place:
        hint = nearest(name, types)
        hint = hint if hint.startswith("did") else "python -m search.models --zoo transformers lists the types"
        raise ConfigError(f"model.name: Transformers has no image classifier {name!r}; {hint}")
    try:
        if name in types:
            config = library.AutoConfig.for_model(name)
        else:
            file = _file_of(name, _CONFIG)
            if file is None:
                raise ConfigError(f"model.name: transformers:{name}: there is no {_CONFIG}")
            config = library.AutoConfig.from_pretrained(file, trust_remote_code=False)
    except (HubError, OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.name: transformers:{name}: {first_line(error)}") from error
    if config.model_type not in types:
        raise ConfigError(f"model.name: transformers:{name} is a {config.model_type}, which is no image classifier")
    return config


def _config_for(name: str, shape: Shape, drop_path_rate: float) -> Any:
    config = deepcopy(_config(name))
    config.num_labels = shape.num_classes
    images = _of_images(config)
    images.num_channels = shape.in_chans
    # A few have a rate for each stage, which stays as it is.
    if isinstance(getattr(config, "drop_path_rate", None), float):
        config.drop_path_rate = drop_path_rate
    elif drop_path_rate > 0:
        raise TypeError("no residual branches to leave out")
    kind = _library().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    # Some have a second class with two heads, of a distillation.
    kind = kind[0] if isinstance(kind, tuple | list) else kind
    config.architectures = [kind.__name__]
    if isinstance(getattr(images, "image_size", None), int) and not _interpolates(kind):
        images.image_size = shape.image_size
    return config


def _of_images(config: Any) -> Any:
    """The part of a configuration that says what images are taken: models of images and text have one for each."""
    return getattr(config, "vision_config", config)


def _interpolates(kind: type) -> bool:
    """Whether a class can fit its position embeddings to images of any size."""
    return "interpolate_pos_encoding" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]


def _adopted(model: nn.Module, shape: Shape, drop_rate: float) -> nn.Module:
    how = {"interpolate_pos_encoding": True} if _interpolates(type(model)) else {}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    adopted: Any = adopt(model.train(), shape.num_classes, _Methods)
    adopted.how = how
    adopted.drop_before_head(drop_rate)
    return adopted  # type: ignore[no-any-return]


ZOO = TransformersZoo()
