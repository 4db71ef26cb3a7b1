"""Study files and spaces: where they are, and their content."""

from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search.config.limits import read_bounded, shortened
from strategies import ConfigError, first_line, nearest

_SUFFIXES = (".yaml", ".yml")


def study_folders() -> tuple[Path, Path]:
    """Folders in which studies are looked up by name: ``studies/`` of the working folder, then that of the package."""
    return Path("studies"), Path(__file__).resolve().parents[2] / "studies"


def list_studies() -> dict[str, Path]:
    """Name to file of every study that can be chosen by name, sorted by name."""
    return _files_by_name(study_folders())


def list_spaces() -> dict[str, Path]:
    """Name to file of every space that ``strategy=NAME`` can choose, sorted by name."""
    return _files_by_name([folder / "strategy" for folder in study_folders()])


def _files_by_name(folders: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def load_space(name: str) -> dict[str, Any]:
    """The content of a space that is chosen by name.

    Raises:
        ConfigError: There is no such space, or its file cannot be read.
    """
    spaces = list_spaces()
    if name not in spaces:
        raise ConfigError(f"strategy: there is no space called {name!r}; {nearest(name, spaces)}")
    return load_study(spaces[name])


def find_study(name: str) -> Path:
    """The file of a study given by name, or by path (with a separator, or ending in .yaml or .yml).

    Raises:
        ConfigError: There is no such study or file.
    """
    if "/" in name or "\\" in name or name.endswith(_SUFFIXES):
        path = Path(name).expanduser()
        try:
            if path.is_file():
                return path
        except (OSError, ValueError) as error:
            # Such as a name that is longer than a file's can be.
            raise ConfigError(f"study: {shortened(repr(name))} cannot be opened: {first_line(error)}") from error
        beside = [other.name for suffix in _SUFFIXES for other in path.parent.glob(f"*{suffix}")]
        raise ConfigError(f"study: {name!r} is not a file" + (f"; {nearest(path.name, beside)}" if beside else ""))
    studies = list_studies()
    if name not in studies:
        raise ConfigError(f"study: there is none called {name!r}; {nearest(name, studies)}")
    return studies[name]


def load_study(path: Path) -> dict[str, Any]:
    """The content of a study file, interpolations unresolved.

    Raises:
        ConfigError: The file cannot be read, is broken YAML, repeats a key or holds no mapping.
    """
    try:
        node = OmegaConf.load(StringIO(read_bounded(path)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {error.problem or error.context}") from error
    # Such as a whole number of more digits than Python reads, which is a ValueError.
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not a readable study file: {first_line(error)}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: holds a list, a study is a mapping of keys to values")
    return {str(key): value for key, value in as_dict(node, resolve=False).items()}


def as_dict(node: DictConfig, resolve: bool) -> dict[str, Any]:
    """A mapping of OmegaConf's as a dict, with its interpolations resolved or not."""
    found = OmegaConf.to_container(node, resolve=resolve, throw_on_missing=resolve)
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]  # keys that are no strings are the schema's to refuse
