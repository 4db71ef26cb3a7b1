"""Models of the user's own: ``module:/path/file.py:build`` or ``module:package.name:build``.

``build(num_classes, in_chans)`` returns a torch module that makes logits (B, num_classes) of images (B, C, H, W).
This is the only zoo that runs a user's code.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from strategies import ConfigError, first_line, nearest
from trainers.hub import HubError, Progress
from trainers.models.adopted import AdoptingZoo, adopt
from trainers.models.zoo import Facts, Listed, Shape, digest_of_file


class ModuleZoo(AdoptingZoo):
    """Functions of files and packages; images are normalised as for ImageNet."""

    prefix = "module"

    def check(self, name: str) -> None:
        """Refuse a file, package or function that there is not; this runs the file."""
        _function(name)

    def listed(self) -> Sequence[Listed]:
        """Nothing: any function may be named."""
        return []

    def create(self, name: str, shape: Shape, *, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
        """What the user's function returns; dropout is added in front of the head."""
        if drop_path_rate > 0:
            raise TypeError("its residual branches are not known")
        build = _function(name)
        try:
            model = build(shape.num_classes, shape.in_chans)
            blocks = getattr(model, "blocks", None)
            # Many models have a module of that name, which is no list of blocks.
            listed = blocks() if callable(blocks) and not isinstance(blocks, nn.Module) else None
        except Exception as error:  # of the user's code
            raise _failed(name, error) from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model.name: module:{name} returned a {type(model).__name__} and no torch.nn.Module")
        try:
            adopted: Any = adopt(model, shape.num_classes, head=_head(model), blocks=listed)
        except ConfigError as error:
            raise ConfigError(f"model.name: module:{name}: {error}") from error
        adopted.drop_before_head(drop_rate)
        return adopted  # type: ignore[no-any-return]

    def facts(self, name: str, source: str = "") -> Facts:
        """Those of most models."""
        return Facts()

    def published(self, name: str, which: str | None, progress: Progress | None) -> tuple[str, Path]:
        """There are none."""
        raise HubError("a model of your own has no published weights; name a file, or none for random weights")

    def code(self, name: str) -> Path | None:
        """The file; a package is installed wherever the model is loaded."""
        place, _ = _parted(name)
        return Path(place).expanduser().absolute() if place.endswith(".py") else None

    def moved(self, name: str, code: Path) -> str:
        """The function of the file at another place."""
        return f"{code}:{_parted(name)[1]}"


def _parted(name: str) -> tuple[str, str]:
    """File or package, and function."""
    place, _, function = name.rpartition(":")
    if not place or not function.isidentifier():
        raise ConfigError(f"model.name: module:{name} is neither module:/path/file.py:build nor module:package:build")
    return place, function


def _function(name: str) -> Callable[[int, int], Any]:
    place, function = _parted(name)
    try:
        found = _file(Path(place).expanduser().absolute()) if place.endswith(".py") else importlib.import_module(place)
    except ConfigError:
        raise
    except Exception as error:  # of the user's code
        raise _failed(name, error) from error
    build = getattr(found, function, None)
    if not callable(build):
        known = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"model.name: {place} has no function {function!r}; {nearest(function, known)}")
    return build  # type: ignore[no-any-return]


def _file(path: Path) -> ModuleType:
    """A file as a module, run once for as long as its content stays."""
    if not path.is_file():
        raise ConfigError(f"model.name: there is no file {path}")
    name = f"unfreeze_module_{digest_of_file(path)}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, "the ending is .py"
        module = importlib.util.module_from_spec(spec)
        # As an import does: dataclasses and pickle look the module of a class up.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _head(model: nn.Module) -> nn.Module | None:
    """What the model says of its head: a module, or the name of one."""
    head = getattr(model, "head", None)
    if isinstance(head, str):
        try:
            return model.get_submodule(head)
        except AttributeError as error:
            raise ConfigError(f"head: {head!r} is no module of the model") from error
    return head if isinstance(head, nn.Module) else None


def _failed(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"model.name: module:{name} raised {type(error).__name__}: {first_line(error)}")


ZOO = ModuleZoo()
