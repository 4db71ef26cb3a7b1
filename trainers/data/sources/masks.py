"""Images in one folder, and masks of the same names in another."""

from collections.abc import Sequence
from pathlib import Path

from strategies import DataError
from trainers.data.found import SPLIT_WORDS, Found, Place, listing, quoted
from trainers.data.sources.checks import check_task, checked_folder, checked_root, file_at, shown
from trainers.data.sources.folders import images_below, one_a_split, passed_over, subfolders, warn_of
from trainers.data.sources.mask_files import MOST_CLASSES, FileCodes
from trainers.data.sources.tables import Table, read_columns, read_header

_COLOUR = ("red", "green", "blue")


def find_masks(place: Place) -> Found:
    """Images below ``data.root`` with masks below ``data.masks``: ``a/b.jpg`` belongs to ``a/b.png``.

    Folders train, val and test under ``data.root`` are splits, and the folder of the masks has the same folders. Both
    folders may be the same, if images and masks differ by their suffix, or the masks may lie within the images' folder.
    An image without a mask is a bad image.

    Raises:
        DataError: A folder or the palette is missing or cannot be used, there are no images, two images have one mask,
            or the task is not segmentation.
    """
    check_task(place, "masks", "segmentation")
    root = checked_root(place.root, "masks")
    masks = checked_folder(place.masks, "masks", "data.masks", "the folder that holds the masks")
    codes = _codes(place.palette, place.ignore_index)
    images: list[Path] = []
    splits: list[str] = []
    ignored: list[Path] = []
    for split, folder in _split_folders(root).items():
        files, others = images_below(folder)
        ignored += others
        own = [path for path in files if not _is_mask(path, root, masks)]
        if not own:
            raise DataError(
                f"data.root={shown(root)} has no images in {shown(folder)} ({passed_over(others) or 'it is empty'})"
            )
        images += own
        splits += [split] * len(own)
    notes = warn_of(ignored, root)
    labels = [_mask_of(path, root, masks) for path in images]
    _refuse_shared(images, labels)
    return Found(
        images=images,
        labels=labels,
        names=[shown(path) for path in images],
        splits=splits,
        classes=codes.known,
        codes=codes,
        notes=notes,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; ``{"train": root}`` without split folders."""
    named = {path.name: path for path in subfolders(root) if path.name in SPLIT_WORDS}
    if not named:
        return {"train": root}
    if "train" not in named:
        raise DataError(f"data.root={shown(root)} has {quoted(named)} but no folder 'train'")
    return one_a_split(named, root)


def _mask_of(image: Path, root: Path, masks: Path) -> Path:
    return masks / image.relative_to(root).with_suffix(".png")


def _is_mask(path: Path, root: Path, masks: Path) -> bool:
    if root == masks:
        return path.suffix.lower() == ".png"
    return masks in path.parents


def _refuse_shared(images: Sequence[Path], masks: Sequence[Path]) -> None:
    first: dict[Path, Path] = {}
    shared = [
        f"{shown(other)} and {shown(image)}: {shown(mask)}"
        for image, mask in zip(images, masks, strict=True)
        if (other := first.setdefault(mask, image)) != image
    ]
    if shared:
        raise DataError(f"data.masks: {len(shared):,} masks belong to two images{listing(shared)}")


def _codes(palette: Path | None, ignored: int | None) -> FileCodes:
    """How pixels of masks stand for classes; without a palette every index stands for a class."""
    if palette is None:
        indices = [index for index in range(MOST_CLASSES + 1) if index != ignored]
        return FileCodes(tuple(indices[:MOST_CLASSES]), ignored=ignored)
    path = file_at(palette, "data.palette")
    header = read_header(path)
    if sorted(header) not in (sorted(("name", "index")), sorted(("name", *_COLOUR))):
        raise DataError(
            f"data.palette={shown(path)} has the columns {', '.join(header) or 'none'}; expected name,index or "
            "name,red,green,blue"
        )
    table = read_columns(path, header)
    names = [str(name).strip() for name in table.columns["name"]]
    if "index" in header:
        colours: list[int] = []
        indices = _checked(path, table, names, [_number(cell) for cell in table.columns["index"]])
    else:
        cells = zip(*(table.columns[name] for name in _COLOUR), strict=True)
        colours = _checked(path, table, names, [_number(*channels) for channels in cells])
        # In masks of indices a colour is named by its row, as in the palette of a PNG file.
        indices = list(range(len(names)))
    kept = [k for k, index in enumerate(indices) if index != ignored]
    if not 2 <= len(kept) <= MOST_CLASSES:
        raise DataError(
            f"data.palette={shown(path)} has {len(kept)} classes besides data.ignore_index={_null(ignored)}; "
            f"segmentation needs 2 to {MOST_CLASSES}"
        )
    return FileCodes(
        indices=tuple(indices[k] for k in kept),
        colours=tuple(colours[k] for k in kept) if colours else (),
        known=tuple(names[k] for k in kept),
        ignored=ignored,
        ignored_colour=next((code for index, code in enumerate(colours) if index == ignored), None),
    )


def _number(*cells: str) -> int | None:
    """Numbers of one byte each, joined to a larger number; None if a cell is no such number."""
    number = 0
    for cell in map(str.strip, cells):
        if not (cell.isascii() and cell.isdecimal() and int(cell) <= 255):
            return None
        number = number << 8 | int(cell)
    return number


def _checked(path: Path, table: Table, names: Sequence[str], numbers: Sequence[int | None]) -> list[int]:
    """The numbers of all rows, after a check that each row has a name and a number of its own."""
    faults: list[str] = []
    checked: list[int] = []
    for k, (place, name, number) in enumerate(zip(table.places, names, numbers, strict=True)):
        if not name:
            faults.append(f"{place}: no name")
        elif number is None:
            faults.append(f"{place}: '{name}' needs whole numbers from 0 to 255")
        elif name in names[:k]:
            faults.append(f"{place}: the name '{name}' is there twice")
        elif number in numbers[:k]:
            faults.append(f"{place}: '{name}' has the numbers of '{names[numbers.index(number)]}'")
        else:
            checked.append(number)
    if faults:
        raise DataError(f"data.palette={shown(path)}: {len(faults):,} rows cannot be used{listing(faults)}")
    return checked


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)
