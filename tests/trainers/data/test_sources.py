"""What folders, torchvision sets and digits are found to be, and what of them is refused."""

import contextlib
import gzip
import logging
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from strategies import DataError
from trainers.data.found import Place, fetch
from trainers.data.labels import make_targets
from trainers.data.sources.folders import find_folder
from trainers.data.sources.table import SOURCES
from trainers.data.sources.torchvision_sets import find_torchvision


def fill(folder, count=4, first=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        image = np.random.default_rng(zlib.crc32(folder.name.encode()) + first + k).integers(0, 256, (9, 7, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{first + k}{suffix}")


def counts(found):
    return [list(found.splits).count(split) for split in ("train", "val", "test")]


def folder_targets(root):
    return make_targets(find_folder(Place(root=root)), "classification")


def torchvision_set(root, dataset):
    return find_torchvision(Place(root=root, dataset=dataset))


def write_idx(path, array):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, suffix="", train=60, test=20):
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)


@pytest.fixture
def open_folder():
    """A folder that a user without rights can come to, unlike ``tmp_path`` of root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_rights():
    """Root may read everything; for a while it is nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_digits_need_no_files():
    found = SOURCES["digits"](Place())
    targets = make_targets(found, "classification")
    assert targets.classes == tuple("0123456789")
    assert counts(found) == [1797, 0, 0]
    images = np.stack(found.images)
    assert images.dtype == np.uint8
    assert (images.shape[1:], images.min(), images.max()) == ((8, 8), 0, 255)
    assert targets.values[:10].tolist() == list(range(10))


def test_the_table_has_every_source():
    text = "coco digits folder huggingface manifest masks scenes torchvision voc webdataset"
    assert list(SOURCES) == text.split()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.parametrize("source", ["digits", "folder", "torchvision"])
def test_sources_of_one_class_an_image_refuse_other_tasks(tmp_path, source, task):
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    with pytest.raises(DataError, match=rf"data\.source={source} .* only; for task={task} take .*manifest"):
        SOURCES[source](Place(task=task, root=tmp_path, dataset="MNIST"))


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"task=regresion is unknown \(did you mean 'regression'\?\)"):
        find_folder(Place(task="regresion", root=tmp_path))


def test_class_folders_give_classes_in_natural_order(tmp_path):
    for name in ("class10", "class2", "class1"):
        fill(tmp_path / name, 12)
    found = find_folder(Place(root=tmp_path))
    assert folder_targets(tmp_path).classes == ("class1", "class2", "class10")
    assert counts(found) == [36, 0, 0]
    assert [path.name for path in found.images[:12]] == [f"{k}.png" for k in range(12)]
    assert list(found.names) == list(map(str, found.images))
    assert all(path.parent.name == label for path, label in zip(found.images, found.labels, strict=True))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_kept_as_they_are(tmp_path, val):
    for split, count in (("train", 5), (val, 3), ("test", 2)):
        for name in ("a", "b"):
            fill(tmp_path / split / name, count)
    found = find_folder(Place(root=tmp_path))
    assert counts(found) == [10, 6, 4]
    assert all((f"/{val}/" in name) == (split == "val") for name, split in zip(found.names, found.splits, strict=True))


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path / "train", 8)
    fill(tmp_path / "bus", 8)
    assert folder_targets(tmp_path).classes == ("bus", "train")


def test_folders_within_a_class_belong_to_it_and_hidden_files_to_nobody(tmp_path):
    fill(tmp_path / "a" / "deep" / "deeper", 4)
    fill(tmp_path / "a", 4, suffix=".JPG")
    fill(tmp_path / "b", 8)
    (tmp_path / "b" / "._0.png").write_text("left by another system")
    (tmp_path / ".cache").mkdir()
    assert list(find_folder(Place(root=tmp_path)).labels) == ["a"] * 8 + ["b"] * 8


def test_files_that_are_no_images_by_their_suffix_are_ignored_and_counted(tmp_path, caplog):
    for name in ("a", "b"):
        fill(tmp_path / name, 8)
        (tmp_path / name / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(find_folder(Place(root=tmp_path)).images) == 16
    assert "passed over 2 .txt files" in caplog.text


def test_arrays_in_class_folders_are_images(tmp_path):
    fill(tmp_path / "a")
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "bands.npy", np.zeros((8, 8, 5), np.uint16))
    assert tmp_path / "b" / "bands.npy" in find_folder(Place(root=tmp_path)).images


def test_names_that_are_not_ascii_are_kept_and_those_that_are_no_text_can_be_printed(tmp_path):
    fill(tmp_path / "Schäfer 犬", 1)
    undecodable = os.fsdecode(b"caf\xe9")
    fill(tmp_path / "b", 1)
    (tmp_path / "b" / "0.png").rename(tmp_path / "b" / f"{undecodable}.png")
    shutil.copytree(tmp_path / "b", tmp_path / undecodable)
    found = find_folder(Place(root=tmp_path))
    assert set(found.labels) == {"b", "caf\\udce9", "Schäfer 犬"}
    assert f"{tmp_path}/caf\\udce9/caf\\udce9.png" in found.names
    assert "".join((*found.names, *found.labels)).encode("utf-8")
    assert all(fetch(image).startswith(b"\x89PNG") for image in found.images)


def test_an_error_about_a_name_that_is_no_text_can_be_printed(tmp_path):
    fill(tmp_path / "a", 1)
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (folder,) = find_folder(Place(root=tmp_path)).empty
    assert folder.encode("utf-8").endswith(b"caf\\udce9")


LOOPS = {
    "to the class": "a/loop -> a",
    "to the root": "a/loop -> .",
    "deep down": "a/deep/er/loop -> a/deep",
    "a class of its own": "loop -> .",
    "out of the root": "loop -> ..",
    "to itself": "a/loop.png -> a/loop.png",
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_link_that_leads_back_is_one_bad_image(tmp_path, case):
    root = tmp_path / "root"
    fill(root / "a", 2)
    fill(root / "b", 2)
    link, target = (root / name for name in LOOPS[case].split(" -> "))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    found = find_folder(Place(root=root))
    assert len(found.images) == 5
    with pytest.raises(DataError, match=r"leads back|Too many levels of symbolic links"):
        fetch(found.images[list(found.names).index(str(link))])


def test_a_link_to_images_elsewhere_is_followed(tmp_path):
    fill(tmp_path / "elsewhere", 3)
    fill(tmp_path / "root" / "a", 2)
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    assert list(find_folder(Place(root=tmp_path / "root")).labels) == ["a"] * 2 + ["b"] * 3


@pytest.mark.parametrize("shut", ["a", "a/deep", "."])
def test_a_folder_that_may_not_be_read_is_named(open_folder, shut):
    fill(open_folder / "a" / "deep")
    fill(open_folder / "b")
    (open_folder / shut).chmod(0)
    with without_rights(), pytest.raises(DataError, match=rf"folder {(open_folder / shut)}.* cannot be read: Perm"):
        find_folder(Place(root=open_folder))


def test_a_root_below_a_folder_that_may_not_be_entered_is_refused(open_folder):
    fill(open_folder / "shut" / "root" / "a")
    (open_folder / "shut").chmod(0)
    with without_rights(), pytest.raises(DataError, match=r"data\.root=.*/shut/root cannot be read: Permission denied"):
        find_folder(Place(root=open_folder / "shut" / "root"))


def test_a_link_to_where_nobody_may_enter_is_one_bad_image(open_folder):
    fill(open_folder / "shut")
    fill(open_folder / "root" / "a")
    fill(open_folder / "root" / "b")
    (open_folder / "root" / "a" / "link.png").symlink_to(open_folder / "shut" / "0.png")
    (open_folder / "shut").chmod(0)
    with without_rights():
        found = find_folder(Place(root=open_folder / "root"))
        assert len(found.images) == 9
        with pytest.raises(DataError, match="Permission denied"):
            fetch(open_folder / "root" / "a" / "link.png")


FOLDERS = {
    "missing": (None, "data.root=.*nowhere does not exist"),
    "no class folders": (["root/"], "has no class folders"),
    "loose images": (["root/*"], "has no class folders"),
    "empty classes alone": (["root/a/", "root/b/"], "no class folder has images\n.*/a\n.*/b"),
    "one class only": (["root/a/*"], "one class only .'a'."),
    "no train": (["root/val/a/*", "root/test/a/*"], "no folder 'train'"),
    "train without classes": (["root/train/*", "root/val/a/*"], "train has no class folders"),
    "two vals": (["root/train/a/*", "root/val/a/*", "root/valid/a/*"], "two folders for one split: 'val', 'valid'"),
    "unknown in val": (["root/train/a/*", "root/train/b/*", "root/val/c/*"], "val has classes without.*train: 'c'"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, case):
    tree, message = FOLDERS[case]
    for entry in tree or []:
        folder = tmp_path / entry.removesuffix("*")
        folder.mkdir(parents=True, exist_ok=True)
        if entry.endswith("*"):
            fill(folder)
    with pytest.raises(DataError, match=message):
        folder_targets(tmp_path / ("root" if tree else "nowhere"))


def test_a_root_that_is_a_file_or_not_given_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.root=.*file is a file; expected a folder"):
        find_folder(Place(root=tmp_path / "file"))
    with pytest.raises(DataError, match=r"data\.source=folder needs data\.root"):
        find_folder(Place())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("where", [".", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files_wherever_they_lie(tmp_path, where, suffix):
    write_mnist(tmp_path / where, suffix)
    found = torchvision_set(tmp_path, "FashionMNIST")
    targets = make_targets(found, "classification")
    assert targets.classes[0] == "T-shirt/top"
    assert counts(found) == [60, 0, 20]
    assert found.names[60:] == [f"FashionMNIST/test/{k}" for k in range(20)]
    assert targets.values[60:].tolist() == [*range(10), *range(10)]


def test_a_torchvision_set_without_parts_is_all_train(tmp_path):
    for name in ("Forest", "River"):
        fill(tmp_path / "eurosat" / "2750" / name, 8, suffix=".jpg")
    found = torchvision_set(tmp_path, "EuroSAT")
    assert (found.classes, counts(found)) == (("Forest", "River"), [16, 0, 0])


def test_a_torchvision_set_with_a_val_part_keeps_it(tmp_path):
    for part, count in (("train", 4), ("valid", 3), ("test", 2)):
        for name in ("CH", "PE"):
            fill(tmp_path / "country211" / part / name, count)
    assert counts(torchvision_set(tmp_path, "Country211")) == [8, 6, 4]


def test_a_bad_file_of_a_torchvision_set_is_a_bad_image(tmp_path):
    for name in ("Forest", "River"):
        fill(tmp_path / "eurosat" / "2750" / name, 8, suffix=".jpg")
    (tmp_path / "eurosat" / "2750" / "River" / "3.jpg").write_text("no image")
    found = torchvision_set(tmp_path, "EuroSAT")
    assert fetch(found.images[10]).size == (7, 9)
    with pytest.raises(DataError, match="UnidentifiedImageError"):
        fetch(found.images[found.names.index("EuroSAT/train/11")])


MISSING_SETS = {
    "no name": (None, True, r"needs data\.dataset, one of .*CIFAR10"),
    "a wrong name": ("FashionMNST", True, r"FashionMNST.*did you mean 'FashionMNIST'\?"),
    "no root": ("FashionMNIST", False, r"needs data\.root.*dataset-fashion-mnist"),
    "no IDX files": ("FashionMNIST", True, r"looked in .*/FashionMNIST/raw, .*/raw, .*apt-get install dataset-fash"),
    "no files": ("CIFAR10", True, r"CIFAR10 was not found under .*nothing is downloaded"),
}


@pytest.mark.parametrize("case", MISSING_SETS)
def test_a_torchvision_set_that_is_not_there_is_refused(tmp_path, case):
    dataset, rooted, message = MISSING_SETS[case]
    with pytest.raises(DataError, match=message):
        torchvision_set(tmp_path if rooted else None, dataset)


IDX = {
    "cut off": (lambda content: content[:-5], "holds .* values where its header"),
    "no header": (lambda content: b"\0\0", "is not an IDX file"),
    "floats": (lambda content: content[:2] + b"\x0d" + content[3:], "is not an IDX file of unsigned bytes"),
    "a label beyond the classes": (lambda content: content[:-1] + b"\x0b", "has the label 11; expected 0 to 9"),
    "no gzip": (lambda content: b"plain", "cannot be read"),
    "half a gzip": (lambda content: gzip.compress(content)[:-12], "cannot be read"),
    "other count": (lambda content: content[:7] + bytes([59]) + content[8:-1], r"labels \(59,\)"),
}


@pytest.mark.parametrize("case", IDX)
def test_damaged_idx_files_are_refused_by_name(tmp_path, case):
    damage, message = IDX[case]
    write_mnist(tmp_path)
    plain = tmp_path / "train-labels-idx1-ubyte"
    content = plain.read_bytes()
    plain.unlink()
    suffix = ".gz" if "gzip" in case else ""
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(damage(content))
    with pytest.raises(DataError, match=message):
        torchvision_set(tmp_path, "MNIST")
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").unlink()
    with pytest.raises(DataError, match="neither train-labels-idx1-ubyte nor"):
        torchvision_set(tmp_path, "MNIST")
