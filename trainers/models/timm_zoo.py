"""timm's classifiers: the zoo of names without ``ZOO:``."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn

from strategies import ConfigError, nearest
from trainers.hub import HubError, Progress, model_file
from trainers.models.zoo import Facts, Listed, Shape, Zoo

_RGB = 3


class TimmZoo(Zoo):
    """timm's classifiers, with or without a pretrained tag: ``resnet50``, ``resnet50.a1_in1k``."""

    prefix = "timm"

    def check(self, name: str) -> None:
        """Refuse a name or a tag that timm does not know."""
        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            close = get_close_matches(architecture, timm.list_models(), n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else "timm.list_models() names them all"
            raise ConfigError(f"model.name: timm has no model {name!r}; {hint}")
        tagged = timm.list_models(architecture, include_tags=True) if tag else []
        if tag and name not in tagged:
            hint = nearest(name, tagged) if tagged else "it has no tags"
            raise ConfigError(f"model.name: timm has no pretrained tag {tag!r} for {architecture}; {hint}")

    def listed(self) -> Sequence[Listed]:
        """All architectures; timm tells neither their parameters nor their accuracy."""
        return [Listed(name) for name in timm.list_models()]

    def create(self, name: str, shape: Shape, **how: Any) -> nn.Module:
        """Timm's model, made for the size of the images if its architecture depends on it."""
        if self.facts(name).fixed_size:
            how["img_size"] = shape.image_size
        model = timm.create_model(name, num_classes=shape.num_classes, in_chans=shape.in_chans, **how)
        assert isinstance(model, nn.Module)
        return model

    def load(self, name: str, shape: Shape, state: Mapping[str, Tensor], twin: nn.Module) -> nn.Module:
        """The model by timm's own loading: checkpoint filters, resized position embeddings, adapted channels."""
        # With a number of classes that no model has, timm always leaves the file's classifier out.
        overlay: dict[str, Any] = {"state_dict": dict(state), "num_classes": -1}
        if self._has_channels(state, twin, shape.in_chans):
            # With a first convolution named, timm 1.0.22 drops it unless it has 3 channels, and 1.0.31 warns of it.
            overlay["first_conv"] = None
        model: Any = self.create(name, shape, pretrained=True, pretrained_cfg_overlay=overlay)
        # timm keeps the overlay, tensors included, in the model's configuration.
        model.pretrained_cfg = model.default_cfg = cast(Any, twin).pretrained_cfg
        return cast(nn.Module, model)

    def _has_channels(self, state: Mapping[str, Tensor], twin: nn.Module, in_chans: int) -> bool:
        """Whether the file's first layers already take ``in_chans`` channels, and not red, green and blue."""
        own = twin.state_dict()
        for name in self.first_weights(twin):
            if name not in state or not state[name].ndim == own[name].ndim == 4:
                return False  # timm's filter may rename and reshape the file's tensors first
            channels, wanted = state[name].shape[1], own[name].shape[1]
            # Some stems fold pixels into channels, so that both numbers are multiplied.
            if channels == wanted * _RGB / in_chans:
                return False
            if channels != wanted:
                raise ValueError(f"its {name} takes {channels} channels, model.in_chans is {in_chans}")
        return True

    def facts(self, name: str, source: str = "") -> Facts:
        """From timm's configuration of the architecture's pretrained weights."""
        found = timm.get_pretrained_cfg(name)
        if found is None:
            return Facts()
        size = int(found.input_size[-1]) if found.input_size else Facts().image_size
        return Facts(found.mean, found.std, size, bool(found.fixed_input_size))

    def first_weights(self, model: nn.Module) -> Sequence[str]:
        """As timm's configuration names them."""
        return [f"{layer}.weight" for layer in _layers(model, "first_conv")]

    def classifiers(self, model: nn.Module) -> Sequence[str]:
        """As timm's configuration names them."""
        return _layers(model, "classifier")

    def published(self, name: str, which: str | None, progress: Progress | None) -> tuple[str, Path]:
        """The file on the Hugging Face hub that timm names."""
        if which is not None:
            raise HubError(f"timm's weights are chosen by the model's tag, such as {name.partition('.')[0]}.{which}")
        repository, path = model_file(name, progress)
        return f"hub:{repository}", path


def _layers(model: nn.Module, key: str) -> tuple[str, ...]:
    """Names of layers, from a timm model's configuration."""
    names = cast(Any, model).pretrained_cfg.get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


ZOO = TimmZoo()
