"""Hugging Face data sets that are really saved, converted and cached; the hub itself is never asked."""

import io
import logging
import pickle
import socket
import sys
import time

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image as Picture

from strategies import DataError
from trainers.data.found import Columns, Place, TableItem, fetch
from trainers.data.labels import make_targets
from trainers.data.sources.huggingface import find_huggingface

CLASSES = datasets.ClassLabel(names=["wolf", "cat"])
TEXT, FLOAT, INT = datasets.Value("string"), datasets.Value("float32"), datasets.Value("int64")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()
    return cache


def png(k):
    buffer = io.BytesIO()
    Picture.fromarray(np.full((3, 4, 3), k, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count=4, first=0, image="image", **columns):
    """A data set of ``count`` images; each column is given as (feature, cells), without any it is ``label``."""
    columns = columns or {"label": (CLASSES, [k % 2 for k in range(count)])}
    features = {image: datasets.Image(), **{name: feature for name, (feature, _) in columns.items()}}
    cells = {
        image: [{"bytes": png(first + k), "path": None} for k in range(count)],
        **{name: values for name, (_, values) in columns.items()},
    }
    return datasets.Dataset.from_dict(cells, features=datasets.Features(features))


def saved(folder, **splits):
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def found(dataset, task="classification", **columns):
    return find_huggingface(Place(task=task, dataset=str(dataset), columns=Columns(**columns)))


def test_a_saved_data_set_keeps_its_splits_rows_and_classes(tmp_path):
    folder = saved(tmp_path / "pets", test=table(2, 20), train=table(4), validation=table(2, 10))
    data = found(folder)
    assert data.splits == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert data.labels == ["wolf", "cat"] * 4
    assert data.classes == ("wolf", "cat")
    assert [fetch(image) for image in data.images] == [png(k) for k in (0, 1, 2, 3, 10, 11, 20, 21)]
    assert data.names[3:5] == [f"{folder}/train/3", f"{folder}/validation/0"]
    assert data.groups is None
    assert make_targets(data, "classification").classes == ("wolf", "cat")


def test_images_survive_the_way_to_another_process_and_bring_no_other_column_along(tmp_path):
    notes = [f"{k}" * 100_000 for k in range(4)]
    folder = saved(tmp_path / "pets", train=table(label=(CLASSES, [0, 1, 0, 1]), notes=(TEXT, notes)))
    image = found(folder).images[2]
    assert isinstance(image, TableItem)
    assert image.table.column_names == ["image"]
    sent = pickle.dumps(image)
    assert len(sent) < 10_000
    assert fetch(pickle.loads(sent)) == png(2)


def test_a_single_saved_data_set_is_train_whatever_format_it_was_saved_with(tmp_path):
    table(2, label=(INT, [7, 8])).with_format("numpy").save_to_disk(tmp_path / "pets")
    data = found(tmp_path / "pets")
    assert set(data.splits) == {"train"}
    assert data.labels == ["7", "8"]
    assert fetch(data.images[1]) == png(1)


# datasets has readers of these names, which it would take for what is meant.
@pytest.mark.parametrize("name", ["pets", "csv"])
def test_a_folder_of_parquet_files_is_converted_and_found(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    table(4).to_parquet(tmp_path / name / "train-00000.parquet")
    table(2, 10).to_parquet(tmp_path / name / "test-00000.parquet")
    monkeypatch.chdir(tmp_path)
    data = found(name)
    assert data.splits == ["train"] * 4 + ["test"] * 2
    assert [fetch(image) for image in data.images] == [png(k) for k in (0, 1, 2, 3, 10, 11)]
    assert data.classes == ("wolf", "cat")


def test_files_of_an_image_folder_are_taken_as_files(tmp_path):
    paths = [tmp_path / "pets" / split / name / "1.png" for split in ("train", "test") for name in ("cat", "wolf")]
    for k, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_bytes(png(k))
    data = found(tmp_path / "pets")
    assert data.images == paths
    assert data.names == [str(path) for path in paths]
    assert data.labels == ["cat", "wolf"] * 2


def test_a_configuration_stands_behind_a_colon(tmp_path):
    folder = tmp_path / "pets"
    for config, first in (("small", 0), ("large", 10)):
        (folder / config).mkdir(parents=True)
        table(2, first).to_parquet(folder / config / "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_dir: small\n- config_name: large\n  data_dir: large\n---\n"
    )
    assert fetch(found(f"{folder}:large").images[0]) == png(10)
    with pytest.raises(DataError, match=r"cannot be loaded.*huge.*small.*large"):
        found(f"{folder}:huge")
    with pytest.raises(DataError, match="no configuration 'small', as one that save_to_disk wrote"):
        found(saved(tmp_path / "saved", train=table()) + ":small")


def test_the_only_columns_of_their_kind_are_found_by_themselves(tmp_path):
    folder = saved(tmp_path / "pets", train=table(2, image="photo", species=(CLASSES, [0, 1]), note=(TEXT, ["", "b"])))
    data = found(folder)
    assert data.labels == ["wolf", "cat"]
    assert fetch(data.images[1]) == png(1)


LABELS = [
    ("classification", (CLASSES, [1, 0]), ["cat", "wolf"], ("wolf", "cat")),
    ("classification", (TEXT, ["b", " a "]), ["b", "a"], ()),
    ("classification", (INT, [7, -2]), ["7", "-2"], ()),
    ("multilabel", (datasets.List(CLASSES), [[1, 0, 1], []]), [("cat", "wolf"), ()], ("wolf", "cat")),
    ("multilabel", (datasets.List(TEXT), [["b"], ["a", "b"]]), [("b",), ("a", "b")], ()),
    ("regression", (FLOAT, [0.5, -2]), [(0.5,), (-2.0,)], ("label",)),
    ("regression", (INT, [3, 4]), [(3.0,), (4.0,)], ("label",)),
    ("regression", (datasets.List(FLOAT), [[1, 2], [3, 4]]), [(1.0, 2.0), (3.0, 4.0)], ("label[0]", "label[1]")),
    ("regression", (datasets.List(FLOAT, length=1), [[1], [3]]), [(1.0,), (3.0,)], ("label",)),
]


@pytest.mark.parametrize(("task", "column", "labels", "classes"), LABELS)
def test_labels_of_each_task(tmp_path, task, column, labels, classes):
    data = found(saved(tmp_path / "set", train=table(2, label=column)), task)
    assert (data.labels, data.classes) == (labels, classes)


def test_several_columns_are_classes_or_targets(tmp_path):
    sharp, dark = (INT, [1, 0]), (datasets.Value("bool"), [True, False])
    folder = saved(tmp_path / "set", train=table(2, sharp=sharp, dark=dark, height=(FLOAT, [1.5, 2])))
    both = found(folder, "multilabel", label=("dark", "sharp"))
    assert (both.labels, both.classes) == ([("dark", "sharp"), ()], ("dark", "sharp"))
    sizes = found(folder, "regression", label=("height", "sharp"))
    assert (sizes.labels, sizes.classes) == ([(1.5, 1.0), (2.0, 0.0)], ("height", "sharp"))


REFUSED_LABELS = [
    ("classification", (CLASSES, [0, None, -1]), r"2 of 3 images have no usable label\n.*train/1: no label\n.*train/2"),
    ("classification", (TEXT, ["a", None, " "]), "2 of 3"),
    ("classification", (FLOAT, [0.5, 1, 1]), "expected text or an integer, found 0.5"),
    ("multilabel", (datasets.List(CLASSES), [[0], None, [1, None]]), r"train/1: no label\n.*train/2: no label"),
    ("multilabel", (INT, [1, 0, 1]), "expected a list of classes, found 1"),
    ("regression", (FLOAT, [1, None, 2]), r"1 of 3 images have no usable label\n.*train/1: no label"),
    ("regression", (datasets.List(FLOAT), [[1, 2], [1], [2, 3]]), "train/1: 1 numbers, the first image has 2"),
    ("regression", (datasets.Value("bool"), [True, False, True]), "expected a number, found True"),
    ("regression", (CLASSES, [0, 1, 0]), "expected a number, found 'wolf'"),
]


@pytest.mark.parametrize(("task", "column", "message"), REFUSED_LABELS)
def test_labels_that_say_nothing_are_counted_and_named(tmp_path, task, column, message):
    folder = saved(tmp_path / "set", train=table(3, label=column))
    with pytest.raises(DataError, match=message):
        found(folder, task)


def test_columns_of_marks_hold_zeros_and_ones_alone(tmp_path):
    folder = saved(tmp_path / "set", train=table(2, sharp=(INT, [1, 2]), dark=(INT, [0, 1])))
    with pytest.raises(DataError, match="train/1: sharp: expected 0 or 1, found 2"):
        found(folder, "multilabel", label=("sharp", "dark"))
    with pytest.raises(DataError, match="names 'dark' twice"):
        found(folder, "multilabel", label=("dark", "dark"))
    with pytest.raises(DataError, match="names 2 columns; task=classification takes one"):
        found(folder, label=("sharp", "dark"))


def test_a_split_without_any_label_is_left_out_with_a_warning(tmp_path, caplog):
    folder = saved(tmp_path / "set", train=table(), test=table(2, 10, label=(CLASSES, [-1, -1])))
    with caplog.at_level(logging.WARNING):
        assert found(folder).splits == ["train"] * 4
    assert "split 'test' was ignored, it has no labels" in caplog.text


def test_unknown_splits_are_ignored_with_a_warning(tmp_path, caplog):
    folder = saved(tmp_path / "set", train=table(), unsupervised=table(2))
    with caplog.at_level(logging.WARNING):
        assert found(folder).splits == ["train"] * 4
    assert "'unsupervised'" in caplog.text


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": 2, "full": 4}, "has no split 'train', only 'full', 'test'"),
        ({"train": 4, "val": 2, "validation": 2}, "two splits for val: 'val', 'validation'"),
    ],
)
def test_splits_that_cannot_be_used_are_named(tmp_path, splits, message):
    folder = saved(tmp_path / "set", **{name: table(count) for name, count in splits.items()})
    with pytest.raises(DataError, match=message):
        found(folder)


@pytest.mark.parametrize("kind", [TEXT, datasets.ClassLabel(names=["Train", "valid"])])
def test_a_column_divides_a_single_data_set(tmp_path, kind):
    cells = ["Train", "valid", "Train"]
    folder = saved(tmp_path / "set", train=table(3, label=(INT, [1, 2, 3]), part=(kind, cells), who=(INT, [5, 6, 5])))
    data = found(folder, split="part", group="who")
    assert data.splits == ["train", "val", "train"]
    assert data.groups == ["5", "6", "5"]


def test_splits_and_groups_that_say_nothing_are_named(tmp_path):
    columns = {"label": (INT, [1, 2]), "part": (TEXT, ["train", "tset"]), "who": (TEXT, [None, "x"])}
    folder = saved(tmp_path / "set", train=table(2, **columns))
    with pytest.raises(DataError, match=r"1 images have a split other than.*\n.*train/1: tset"):
        found(folder, split="part")
    with pytest.raises(DataError, match=r"1 images have no group in the column 'who'\n.*train/0"):
        found(folder, group="who")


def test_a_data_set_that_is_divided_already_takes_no_split_column(tmp_path):
    columns = {"label": (INT, [1, 2]), "part": (TEXT, ["train", "train"])}
    folder = saved(tmp_path / "set", train=table(2, **columns), test=table(2, **columns))
    with pytest.raises(DataError, match=r"data.columns.split=part: .* is divided already, into 'test', 'train'"):
        found(folder, split="part")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "lable"}, r"data.columns.label: .* has no column 'lable' \(did you mean 'label'\?\)"),
        ({"image": "imgae"}, r"data.columns.image: .* has no column 'imgae' \(did you mean 'image'\?\)"),
        ({"group": "lable"}, r"data.columns.group: .* \(did you mean 'label'\?\)"),
        ({"split": "lable"}, r"data.columns.split: .* \(did you mean 'label'\?\)"),
        ({"image": "label"}, r"'label' of data.dataset=.* holds no images, but ClassLabel"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(tmp_path, columns, message):
    folder = saved(tmp_path / "set", train=table())
    with pytest.raises(DataError, match=message):
        found(folder, **columns)


def test_a_column_that_only_train_has_is_named(tmp_path):
    folder = saved(tmp_path / "set", train=table(), test=table(2, kind=(CLASSES, [0, 1])))
    with pytest.raises(DataError, match=r"data.columns.label: .* has no column 'label'"):
        found(folder)


def test_columns_must_be_named_where_it_is_not_clear(tmp_path):
    folder = saved(tmp_path / "set", train=table(2, fine=(CLASSES, [0, 1]), coarse=(CLASSES, [0, 1])))
    with pytest.raises(DataError, match=r"data.columns.label is needed: .* 'coarse', 'fine', 'image'"):
        found(folder)
    assert found(folder, label="fine").labels == ["wolf", "cat"]


def test_plain_bytes_are_images_and_a_row_without_any_is_a_bad_one(tmp_path):
    features = datasets.Features(jpg=datasets.Value("binary"), label=INT)
    rows = datasets.Dataset.from_dict({"jpg": [png(1), None], "label": [1, 2]}, features=features)
    rows.save_to_disk(tmp_path / "set")
    images = found(tmp_path / "set", image="jpg").images
    assert fetch(images[0]) == png(1)
    with pytest.raises(DataError, match="no image in this row"):
        fetch(images[1])


class Pets(datasets.GeneratorBasedBuilder):
    """Puts a set where load_dataset puts one that it has downloaded from the hub."""

    def _info(self):
        return datasets.DatasetInfo(features=table().features)

    def _split_generators(self, manager):
        return [datasets.SplitGenerator("train", gen_kwargs={"first": 10 if self.config.name == "large" else 0})]

    def _generate_examples(self, first):
        for k in range(2):
            yield k, {"image": {"bytes": png(first + k), "path": None}, "label": k}


def write_to_cache(cache, config):
    builder = Pets(cache_dir=str(cache), repo_id="owner/pets", dataset_name="pets", config_name=config, hash="0123")
    builder.download_and_prepare()


def test_a_set_of_the_hub_is_taken_from_the_cache_without_asking(monkeypatch, own_cache):
    write_to_cache(own_cache, "default")
    write_to_cache(own_cache, "large")
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        assert fetch(found("owner/pets").images[1]) == png(1)
        assert fetch(found("owner/pets:large").images[1]) == png(11)
        assert found("owner/pets").names[0] == "owner/pets/train/0"
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):
            hub.accept()


def test_the_only_cached_configuration_is_taken_when_the_hub_cannot_be_asked_for_the_default(monkeypatch, own_cache):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write_to_cache(own_cache, "small")
    assert fetch(found("owner/pets").images[1]) == png(1)
    write_to_cache(own_cache, "large")
    with pytest.raises(DataError, match=r"multiple 'owner/pets' configurations in the cache: .*HF_HUB_OFFLINE is set"):
        found("owner/pets")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_reached_is_said_in_seconds_with_what_to_do(tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(
        DataError, match=r"the hub could not be reached.*load_dataset\('owner/pets', 'small'\).*save_to"
    ):
        found("owner/pets:small")
    assert time.monotonic() - started < 15


def test_what_is_no_data_set_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "set.parquet").write_text("x")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match=r"empty cannot be loaded: \w*Error: "):
        found(tmp_path / "empty")
    with pytest.raises(DataError, match=r"set.parquet is a file; expected its folder"):
        found(tmp_path / "set.parquet")
    with pytest.raises(DataError, match=r"damaged cannot be loaded: FileNotFoundError"):
        found(tmp_path / "damaged")
    with pytest.raises(DataError, match=r"data.dataset=/no/such/folder does not exist"):
        found("/no/such/folder")
    with pytest.raises(DataError, match=r"needs data.dataset"):
        find_huggingface(Place())


def test_a_missing_package_is_said_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    folder = saved(tmp_path / "set", train=table())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[huggingface\]'"):
        found(folder)
