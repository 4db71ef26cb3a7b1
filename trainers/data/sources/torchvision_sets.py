"""Classification data sets that torchvision knows by name, from a local root; nothing is ever downloaded."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies import DataError, nearest
from trainers.data.found import DatasetItem, Found, ImageRef, Place
from trainers.data.sources.checks import check_task, checked_root
from trainers.data.sources.idx import idx_folder, idx_folders, read_part
from trainers.private_apis import targets_of_set

_IDX_SETS = ("FashionMNIST", "KMNIST", "MNIST")
_DEBIAN_FASHION = (
    "Debian and Ubuntu: apt-get install dataset-fashion-mnist, data.root=/usr/share/datasets/fashion-mnist"
)


def _by_train() -> dict[str, dict[str, Any]]:
    return {"train": {"train": True}, "test": {"train": False}}


def _by_split(train: str = "train", test: str = "test", val: str | None = None) -> dict[str, dict[str, Any]]:
    names = {"train": train, "val": val, "test": test}
    return {part: {"split": name} for part, name in names.items() if name is not None}


# Arguments that choose each part; a part that a set lacks is cut from its train part. Sets without integer labels are
# left out, and SUN397, whose order of images is the file system's, so that no seeded split can be repeated.
_SETS: Mapping[str, dict[str, dict[str, Any]]] = {
    "CIFAR10": _by_train(),
    "CIFAR100": _by_train(),
    "Country211": _by_split(val="valid"),
    "DTD": _by_split(val="val"),
    "EuroSAT": {"train": {}},
    "FGVCAircraft": _by_split("trainval"),
    "Flowers102": _by_split(val="val"),
    "Food101": _by_split(),
    "GTSRB": _by_split(),
    "Imagenette": _by_split(test="val"),
    "OxfordIIITPet": _by_split("trainval"),
    "RenderedSST2": _by_split(val="val"),
    "STL10": _by_split(),
    "SVHN": _by_split(),
    "StanfordCars": _by_split(),
    "USPS": _by_train(),
}
NAMES = tuple(sorted((*_IDX_SETS, *_SETS)))


@dataclass(frozen=True, slots=True)
class _Part:
    images: Sequence[ImageRef]
    targets: Sequence[int]
    classes: tuple[str, ...]


def find_torchvision(place: Place) -> Found:
    """A torchvision data set, ``data.dataset``, that lies under ``data.root``; it is never downloaded.

    The MNIST family is read from IDX files, plain or gzipped, in root/<dataset>/raw, root/raw or root.

    Raises:
        DataError: The name is unknown, the files are not there or damaged, or the task is not classification.
    """
    check_task(place, "torchvision", "classification")
    name = place.dataset
    if name is None:
        raise DataError(f"data.source=torchvision needs data.dataset, one of {', '.join(NAMES)}")
    if name not in NAMES:
        raise DataError(f"data.dataset={name} is not a known torchvision data set ({nearest(name, NAMES)})")
    try:
        root = checked_root(place.root, "torchvision")
    except DataError as error:
        hint = f" ({_DEBIAN_FASHION})" if name == "FashionMNIST" else ""
        raise DataError(f"{error}, for data.dataset={name}{hint}") from error
    parts = _idx_parts(root, name) if name in _IDX_SETS else _parts(root, name)
    return _joined(parts, name)


def _joined(parts: Mapping[str, _Part], name: str) -> Found:
    classes = parts["train"].classes
    images: list[ImageRef] = []
    labels: list[str] = []
    names: list[str] = []
    splits: list[str] = []
    for split, part in parts.items():
        beyond = [target for target in part.targets if not 0 <= target < len(classes)]
        if beyond:
            raise DataError(f"{name} {split} has the label {beyond[0]}; expected 0 to {len(classes) - 1}")
        images += part.images
        labels += [classes[target] for target in part.targets]
        names += [f"{name}/{split}/{k}" for k in range(len(part.images))]
        splits += [split] * len(part.images)
    return Found(images, labels, names, splits, classes)


def _idx_parts(root: Path, name: str) -> dict[str, _Part]:
    folder = idx_folder(root, name)
    if folder is None:
        looked = ", ".join(map(str, idx_folders(root, name)))
        hint = f"; {_DEBIAN_FASHION}" if name == "FashionMNIST" else ""
        raise DataError(
            f"data.dataset={name}: no train-images-idx3-ubyte(.gz) found; looked in {looked}; "
            f"nothing is downloaded{hint}"
        )
    classes = tuple(_class(name).classes)
    parts = {}
    for split in ("train", "test"):
        images, targets = read_part(folder, split)
        parts[split] = _Part(list(images), targets.tolist(), classes)
    return parts


def _parts(root: Path, name: str) -> dict[str, _Part]:
    parts = {}
    for split, arguments in _SETS[name].items():
        try:
            dataset = _class(name)(root=str(root), download=False, **arguments)
        except Exception as error:
            # Each data set raises its own kind of error for missing files: RuntimeError, OSError, ...
            raise DataError(
                f"data.dataset={name} was not found under data.root={root}, and nothing is downloaded; "
                f"torchvision says: {type(error).__name__}: {error}"
            ) from error
        targets = targets_of_set(dataset)
        items = [DatasetItem(dataset, k) for k in range(len(dataset))]
        parts[split] = _Part(items, targets, _class_names(dataset, targets))
    return parts


def _class(name: str) -> Any:
    return getattr(importlib.import_module("torchvision.datasets"), name)


def _class_names(dataset: Any, targets: Sequence[int]) -> tuple[str, ...]:
    """Names by index; a set without names gets numbers, and a repeated name gets its index appended."""
    given = getattr(dataset, "classes", None) or range(max(targets) + 1)
    names = [name if isinstance(name, str) else name[0] if isinstance(name, tuple) else str(name) for name in given]
    return tuple(f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names))
