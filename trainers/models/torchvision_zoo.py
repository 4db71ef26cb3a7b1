"""torchvision's classifiers: ``torchvision:resnet50``."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import StochasticDepth

from strategies import ConfigError, WeightsError, first_line, nearest
from trainers.hub import HubError, Progress, obstacle_at
from trainers.models.adopted import Adopted, AdoptingZoo, adopt, take_channels
from trainers.models.zoo import Facts, Listed, Shape
from trainers.private_apis import load_own_tensors

# Arguments of some families, by the module that defines them. Auxiliary heads are for training from scratch. With
# transform_input a model would take images as if normalised for other networks, and normalise them anew.
_INCEPTION: dict[str, Any] = {"aux_logits": False, "transform_input": False, "init_weights": True}
_ARGUMENTS: Mapping[str, Callable[[Shape], dict[str, Any]]] = {
    "vision_transformer": lambda shape: {"image_size": shape.image_size},
    "maxvit": lambda shape: {"input_size": (shape.image_size, shape.image_size)},
    "googlenet": lambda shape: _INCEPTION,
    "inception": lambda shape: _INCEPTION,
}
_FIXED_SIZE = ("vision_transformer", "maxvit")
_CENTRED = ("googlenet", "inception")
# Names in the published files of DenseNet, as torchvision's own pattern has them.
_OLD_NAMES = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


class _Methods(Adopted):
    # MNASNet's own method refuses a file that does not say in which version of torchvision it was written.
    _load_from_state_dict = load_own_tensors


class TorchvisionZoo(AdoptingZoo):
    """The classifiers of ``torchvision.models.list_models()``."""

    prefix = "torchvision"

    def check(self, name: str) -> None:
        """Refuse a name that is no classifier of torchvision."""
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            hint = nearest(name, known)
            hint = hint if hint.startswith("did") else "python -m search.models --zoo torchvision lists them"
            raise ConfigError(f"model.name: torchvision has no classifier {name!r}; {hint}")

    def listed(self) -> Sequence[Listed]:
        """All classifiers, with the accuracy of the best published weights."""
        return [_listed(name) for name in torchvision.models.list_models(module=torchvision.models)]

    def create(self, name: str, shape: Shape, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
        """Torchvision's model; its own dropout and dropped branches are off unless the rates ask for them."""
        arguments = _ARGUMENTS.get(_family(name))
        how = {} if arguments is None else arguments(shape)
        model = torchvision.models.get_model(name, weights=None, num_classes=shape.num_classes, **how)
        _set_dropped_branches(model, drop_path_rate)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        take_channels(model, shape.in_chans)
        adopted: Any = adopt(model, shape.num_classes, _Methods)
        adopted.drop_before_head(drop_rate)
        return adopted  # type: ignore[no-any-return]

    def renamed(self, model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without auxiliary heads, with DenseNet's names of today, and a ViT's embeddings for the model's images."""
        found = {_OLD_NAMES.sub(r"\1\2", key): tensor for key, tensor in state.items()}
        found = {key: tensor for key, tensor in found.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))}
        positions = "encoder.pos_embedding"
        if isinstance(model, torchvision.models.VisionTransformer) and positions in found:
            return dict(interpolate_embeddings(model.image_size, model.patch_size, found))
        return found

    def facts(self, name: str, source: str = "") -> Facts:
        """As the weights' own transforms say."""
        weights, family = _weights(name, source.partition(":")[2]), _family(name)
        how = weights.transforms.keywords
        usual = {key: tuple(how[key]) for key in ("mean", "std") if key in how}
        if family in _CENTRED:
            usual = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return Facts(**usual, image_size=int(how["crop_size"]), fixed_size=family in _FIXED_SIZE)

    def published(self, name: str, which: str | None, progress: Progress | None) -> tuple[str, Path]:
        """The file in torch.hub's folder, downloaded if it is not there."""
        kinds = torchvision.models.get_model_weights(name)
        if which is not None and which not in kinds.__members__:
            raise WeightsError(f"model.weights: {name} has no torchvision:{which}; {nearest(which, kinds.__members__)}")
        weights = _weights(name, which or "")
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        path = folder / Path(urlparse(weights.url).path).name
        if not path.is_file():
            _download(weights.url, path)
        return f"torchvision:{weights.name}", path


def _family(name: str) -> str:
    """The module of torchvision that defines a model."""
    return str(torchvision.models.get_model_builder(name).__module__).rpartition(".")[2]


def _weights(name: str, which: str) -> Any:
    """Published weights: those of that name if there are such, else torchvision's first choice."""
    kinds = torchvision.models.get_model_weights(name)
    return kinds.__members__.get(which, kinds.DEFAULT)


def _listed(name: str) -> Listed:
    meta = _weights(name, "").meta
    accuracy = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return Listed(name, meta.get("num_params"), None if accuracy is None else accuracy / 100)


def _set_dropped_branches(model: nn.Module, rate: float) -> None:
    """Scale the rates of all residual branches so that the largest is ``rate``."""
    branches = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    largest = max((branch.p for branch in branches), default=0.0)
    if rate > 0 and largest == 0:
        raise TypeError("no residual branches to leave out")
    for branch in branches:
        branch.p *= rate / largest if largest else 0.0


def _download(url: str, path: Path) -> None:
    """Download a file whole, or not at all; the end of its name is the beginning of its digest."""
    elsewhere = f"download {url} on a machine with access and put it into {path.parent}"
    if obstacle := obstacle_at(f"https://{urlparse(url).netloc}"):
        raise HubError(f"could not reach torchvision's weights ({obstacle}); {elsewhere}")
    digest = re.search(r"-([a-f0-9]+)\.", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = sys.stderr.isatty()
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=shown)
    except Exception as error:  # of the network, of the disk, or of the digest
        raise HubError(f"could not download torchvision's weights ({first_line(error)}); {elsewhere}") from error


ZOO = TorchvisionZoo()
