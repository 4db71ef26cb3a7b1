"""WebDataset shards: real archives, written by tarfile and, where it is installed, by the webdataset library."""

import gzip
import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from strategies import DataError
from trainers.data.found import Columns, Part, Place, fetch
from trainers.data.labels import make_targets
from trainers.data.sources.webdataset import find_webdataset


def png(k):
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4, 3), k, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(content):
    if isinstance(content, dict | list):
        content = json.dumps(content)
    return content if isinstance(content, bytes) else str(content).encode()


def shard(path, files, tar_format=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(encoded(content)), 1_700_000_000.5
            archive.addfile(info, io.BytesIO(encoded(content)))
    return path


def pairs(count=2, first=0):
    """Images and classes, one after another."""
    return [
        member
        for k in range(first, first + count)
        for member in ((f"{k:04}.png", png(k)), (f"{k:04}.cls", f"c{k % 2}"))
    ]


def found(files, task="classification", root=None, **columns):
    files = files if isinstance(files, dict) else {"": str(files)}
    return find_webdataset(Place(task=task, root=root, files=files, columns=Columns(**columns)))


def keys(data):
    return [name.rpartition("/")[2] for name in data.names]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_from_their_places_in_the_archive(tmp_path, tar_format):
    # 200 characters: GNU and pax archives hold such a name in a header of its own.
    deep = "a" * 90 + "/" + "b" * 90
    files = [(f"{deep}/{name}", content) for name, content in pairs(3)]
    path = shard(tmp_path / "set.tar", files, tar_format)
    data = found(path)
    assert [fetch(image) for image in data.images] == [png(0), png(1), png(2)]
    assert data.labels == ["c0", "c1", "c0"]
    assert data.names == [f"{path}/{deep}/000{k}" for k in range(3)]
    assert data.splits == ["train"] * 3
    assert data.groups is None
    assert make_targets(data, "classification").classes == ("c0", "c1")


def test_images_survive_the_way_to_another_process(tmp_path):
    image = found(shard(tmp_path / "set.tar", pairs())).images[1]
    sent = pickle.dumps(image)
    assert isinstance(image, Part)
    assert len(sent) < 1000
    assert fetch(pickle.loads(sent)) == png(1)


def test_shards_of_the_webdataset_library_are_read(tmp_path):
    import webdataset

    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=2, verbose=0) as writer:
        for k in range(4):
            pixels = np.full((3, 4, 3), k, np.uint8)
            writer.write({"__key__": f"{k:04}", "png": pixels, "cls": k % 2, "json": {"patient": k // 2}})
    data = found(tmp_path / "train-{0000..0001}.tar", group="patient")
    assert data.labels == ["0", "1", "0", "1"]
    assert data.groups == ["0", "0", "1", "1"]
    pixels = [np.asarray(Image.open(io.BytesIO(fetch(image)))) for image in data.images]
    assert [image.mean() for image in pixels] == [0, 1, 2, 3]
    streamed = webdataset.WebDataset([str(tmp_path / f"train-000{k}.tar") for k in (0, 1)], shardshuffle=False)
    assert [sample["__key__"] for sample in streamed] == keys(data)
    assert [sample["png"] for sample in streamed] == [fetch(image) for image in data.images]


def test_the_order_is_that_of_shards_and_keys_not_of_the_files_in_them(tmp_path):
    mixed = [pairs(12)[k] for k in np.random.default_rng(0).permutation(24)]
    for k in (10, 9):
        shard(tmp_path / f"set-{k}.tar", [(f"{int(name[:4])}{name[4:]}", content) for name, content in mixed])
    data = found(tmp_path)
    assert data.names == [f"{tmp_path}/set-{shard}.tar/{key}" for shard in (9, 10) for key in range(12)]
    assert [fetch(image) for image in data.images] == [png(k) for k in range(12)] * 2
    assert data.labels == ["c0", "c1"] * 12


def name_shards(folder):
    for k, name in enumerate(("train-000", "train-001", "train-002", "val-000")):
        shard(folder / f"{name}.tar", pairs(1, k))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("train-{000..002}.tar", "train train train"),
        ("{train-001,val-000}.tar", "train val"),
        ("train-00{0,2}.tar", "train train"),
        ("t*n-00{0..1}.tar", "train train"),
        ("*.tar", "train train train val"),
        (".", "train train train val"),
        ("val-000.tar", "val"),
        ({"val": "train-000.tar", "train": "train-00[12].tar"}, "val train train"),
        ({"train": "train-000.tar", "test": "{val,train}-000.tar"}, None),
    ],
)
@pytest.mark.parametrize("by_root", [True, False])
def test_shards_are_named_by_braces_globs_folders_and_files(tmp_path, monkeypatch, by_root, files, expected):
    folder = tmp_path / "with [odd] {name}"
    name_shards(folder)
    if not by_root:
        monkeypatch.chdir(folder)
    root = folder if by_root else None
    if expected is None:
        with pytest.raises(DataError, match=r"names 1 shards more than once\n.*train-000.tar"):
            found(files, root=root)
    else:
        assert found(files, root=root).splits == expected.split()


def test_an_absolute_pattern_and_one_below_folders(tmp_path):
    name_shards(tmp_path / "a")
    name_shards(tmp_path / "b")
    assert len(found(tmp_path / "*" / "val-*.tar").images) == 2
    assert len(found(tmp_path / "{a,b}" / "train-{000..001}.tar").images) == 4


@pytest.mark.parametrize(
    ("names", "splits", "warns"),
    [
        (["Train_0", "valid.0", "TEST-0"], {"train": 1, "val": 1, "test": 1}, False),
        (["train", "validation-1"], {"train": 1, "val": 1}, False),
        (["shard-0", "shard-1"], {"train": 2}, False),
        (["train-0", "values-1", "trainval-0"], {"train": 3}, True),
    ],
)
def test_shards_without_splits_are_of_those_they_are_named_after(tmp_path, caplog, names, splits, warns):
    for k, name in enumerate(names):
        shard(tmp_path / f"{name}.tar", pairs(1, k))
    with caplog.at_level(logging.WARNING):
        data = found(tmp_path)
    assert {split: data.splits.count(split) for split in set(data.splits)} == splits
    assert ("all are train" in caplog.text) == warns


def samples(suffix, *labels):
    return [member for k, label in enumerate(labels) for member in ((f"{k}.jpg", png(k)), (f"{k}.{suffix}", label))]


LABELS = [
    ("classification", samples("cls", "3", " cat\n"), ["3", "cat"], ()),
    ("classification", samples("txt", "a big cat", "Größe"), ["a big cat", "Größe"], ()),
    ("classification", samples("json", {"label": 3}, {"label": "cat", "x": 1}), ["3", "cat"], ()),
    ("multilabel", samples("cls", "b; a;b", "c"), [("b", "a"), ("c",)], ()),
    ("multilabel", samples("txt", "b|a", "c"), [("b", "a"), ("c",)], ()),
    ("multilabel", samples("json", {"label": ["b", 1]}, {"label": []}), [("b", "1"), ()], ()),
    ("regression", samples("cls", "1", "-2.5e1"), [(1.0,), (-25.0,)], ("label",)),
    ("regression", samples("txt", "1;2", "3|4"), [(1.0, 2.0), (3.0, 4.0)], ("label[0]", "label[1]")),
    ("regression", samples("json", {"label": 0.5}, {"label": 2}), [(0.5,), (2.0,)], ("label",)),
]


@pytest.mark.parametrize(("task", "files", "labels", "classes"), LABELS)
def test_labels_of_each_task(tmp_path, task, files, labels, classes):
    data = found(shard(tmp_path / "set.tar", files), task)
    assert (data.labels, data.classes) == (labels, classes)


def test_an_empty_text_is_an_image_that_shows_none_of_the_classes(tmp_path):
    assert found(shard(tmp_path / "set.tar", samples("cls", "a", "")), "multilabel").labels == [("a",), ()]


def test_fields_of_the_json_files_are_chosen_by_name(tmp_path):
    rows = [{"age": 7, "sex": 0, "ill": 1, "site": "x"}, {"age": 8.5, "sex": 1, "ill": 1, "site": 2}]
    path = shard(tmp_path / "set.tar", [*samples("json", *rows), ("0.cls", "a"), ("1.cls", "b")])
    assert found(path).labels == ["a", "b"]
    assert found(path, label="site", group="sex").labels == ["x", "2"]
    assert found(path, group="site").groups == ["x", "2"]
    assert found(path, "regression", label="age").labels == [(7.0,), (8.5,)]
    both = found(path, "multilabel", label=("sex", "ill"))
    assert (both.labels, both.classes) == ([("ill",), ("sex", "ill")], ("sex", "ill"))
    sizes = found(path, "regression", label=("age", "sex"))
    assert (sizes.labels, sizes.classes) == ([(7.0, 0.0), (8.5, 1.0)], ("age", "sex"))


@pytest.mark.parametrize(("field", "labels"), [("label", ["x", "y"]), ("url", ["a", "b"])])
def test_json_that_tells_no_label_leaves_it_to_the_text(tmp_path, field, labels):
    files = [*samples("json", {field: "x"}, {field: "y"}), ("0.txt", "a"), ("1.txt", "b")]
    assert found(shard(tmp_path / "set.tar", files)).labels == labels


def test_files_that_are_of_no_sample_are_passed_over(tmp_path):
    files = [("README", "x"), ("._0000.png", "x"), ("__index__", "x"), ("0000.seg.png", png(9)), ("0000.depth", "x")]
    data = found(shard(tmp_path / "set.tar", [*files, *pairs(2)]))
    assert [fetch(image) for image in data.images] == [png(0), png(1)]


def test_suffixes_are_known_in_capitals_and_keys_end_at_the_first_dot(tmp_path):
    files = [("./a.b/0.PNG", png(0)), ("./a.b/0.Cls", "x"), ("./a/0.jpeg", png(1)), ("./a/0.cls", "y")]
    data = found(shard(tmp_path / "set.tar", files))
    assert sorted(zip(data.labels, map(fetch, data.images), strict=True)) == [("x", png(0)), ("y", png(1))]


def test_of_several_images_one_is_chosen_by_its_suffix(tmp_path):
    files = [("0.left.png", png(1)), ("0.right.png", png(2)), ("0.png", png(3)), ("0.npy", b"n"), ("0.cls", "a")]
    path = shard(tmp_path / "set.tar", files)
    assert fetch(found(path, image="right.png").images[0]) == png(2)
    assert fetch(found(path, image=".PNG").images[0]) == png(3)
    with pytest.raises(
        DataError, match=r"1 of 1 samples have not one image each \(data.columns.image.*\n.*0: npy, png"
    ):
        found(path)


REFUSED = [
    ("classification", {}, [*pairs(2), ("7.cls", "a")], r"1 of 3 samples have not one image each .*\n.*/7: no image"),
    ("classification", {}, [*pairs(2), ("7.png", b"x")], r"1 of 3 images have no usable label\n.*/7: no label"),
    ("classification", {}, [*pairs(2), ("7.png", b"x"), ("7.cls", " ")], r"/7: no label"),
    ("classification", {}, [("7.png", b"x")], r"no sample has a label: .*\.cls, \.json or \.txt"),
    ("classification", {}, [*pairs(2), ("0000.cls", "b")], r"1 of 1 shards .*\n.*set.tar: it holds 0000.cls twice"),
    ("classification", {}, samples("cls", b"\xff\xfe"), r"set.tar: 0.cls is no UTF-8 text"),
    ("classification", {}, samples("json", "{", {"label": 1}), r"1 \.json files cannot be read\n.*/0.json: Expecting"),
    ("classification", {}, samples("json", [1]), r"/0.json: expected an object with fields, found list"),
    ("classification", {}, samples("json", {"lable": 1}), r"no sample has the field 'label' .*did you mean 'lable'"),
    ("classification", {}, samples("json", {"label": 1}, {}), r"1 of 2 images have no usable label\n.*/1: no label"),
    (
        "classification",
        {"label": "x"},
        pairs(2),
        r"columns.label: .* the field 'x' .*\(there is no .json\)",
    ),
    ("classification", {"group": "who"}, pairs(2), r"columns.group: .* the field 'who' .*\(there is no .json\)"),
    (
        "classification",
        {"group": "who"},
        samples("json", {"label": 1, "who": 1}, {"label": 2}),
        r"1 samples .*who.*\n.*/1",
    ),
    ("classification", {"split": "part"}, pairs(2), "shards have no such column; data.shards names them by split"),
    ("classification", {}, samples("json", {"label": 0.5}), "expected text or an integer, found 0.5"),
    ("multilabel", {}, samples("json", {"label": 3}), "expected a list of classes, found 3"),
    ("multilabel", {}, samples("json", {"label": [["a"]]}), r"expected text or an integer, found \['a'\]"),
    ("multilabel", {"label": ("a", "b")}, samples("json", {"a": 1, "b": 2}), "/0: b: expected 0 or 1, found 2"),
    ("regression", {}, samples("cls", "1", "tall"), "/1: expected a number, found 'tall'"),
    ("regression", {}, samples("cls", "1", "1;2"), "/1: 2 numbers, the first image has 1"),
    ("regression", {}, samples("json", {"label": []}), "/0: no number"),
]


@pytest.mark.parametrize(("task", "columns", "files", "message"), REFUSED)
def test_what_cannot_be_used_is_named(tmp_path, task, columns, files, message):
    path = shard(tmp_path / "set.tar", files)
    with pytest.raises(DataError, match=message):
        found(path, task, **columns)


def test_links_in_an_archive_are_refused(tmp_path):
    path = shard(tmp_path / "set.tar", pairs(2))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0000.png"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"set.tar: 0009.png is a link"):
        found(path)


def test_all_bad_shards_are_named_in_one_message(tmp_path):
    whole = shard(tmp_path / "train-0.tar", pairs(2)).read_bytes()
    (tmp_path / "train-1.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "train-2.tgz").write_bytes(gzip.compress(whole))
    (tmp_path / "train-3.tar").write_bytes(b"")
    (tmp_path / "train-4.tar").write_bytes(bytes(10240))
    (tmp_path / "train-5.tar").write_bytes(b"not an archive" * 100)
    (tmp_path / "train-6.tar").write_bytes(whole[:1300])
    shard(tmp_path / "train-7.tar", [("notes", "x")])
    (tmp_path / "train-8.json").write_text("passed over")
    with pytest.raises(DataError) as raised:
        found(tmp_path)
    lines = str(raised.value).splitlines()
    assert lines[0] == "data.shards: 7 of 8 shards cannot be used"
    reasons = ["compressed with gzip", "compressed with gzip", "empty", "empty", "cut off", "cut off", "empty"]
    for k, (line, reason) in enumerate(zip(lines[1:], reasons, strict=True), 1):
        assert f"train-{k}.t" in line
        assert reason in line


def test_missing_shards_are_all_named_before_any_is_read(tmp_path):
    shard(tmp_path / "a-1.tar", [])
    with pytest.raises(DataError, match=r"2 of 3 shards are missing\n  .*a-0.tar\n  .*a-2.tar"):
        found(tmp_path / "a-{0..2}.tar")


@settings(deadline=None, max_examples=60)
@given(end=st.integers(0, 20 * 512))
def test_an_archive_cut_anywhere_is_refused(tmp_path_factory, end):
    folder = tmp_path_factory.mktemp("cut")
    path = shard(folder / "set.tar", [(f"{k}.{suffix}", b"x") for k in range(6) for suffix in ("cls", "jpg")])
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1].offset_data + 512
    path.write_bytes(content[: min(end, last)])
    with pytest.raises(DataError, match=r"shards cannot be used\n.*set.tar: (cut off|empty)"):
        found(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("s3://bucket/train-{000..009}.tar", "is not a path. .* copy these to a local"),
        ("https://host/a.tar", "is not a path"),
        ("pipe:aws s3 cp s3://bucket/a.tar -", "is not a path"),
        ("*.tar", r"data.shards=\*.tar matches no file"),
        ("a-{1}.tar", r"expected a range \{0000..0012\} or a list \{a,b\} in the braces"),
        ("a-{3..1}.tar", r"the range \{3..1\} is empty"),
        ("none", r"1 of 1 shards are missing\n.*none"),
        ("empty", "is a folder without .tar files"),
        ({"vall": "a.tar"}, r"data.shards.vall is of no split \(did you mean 'val'\?\)"),
        ({}, "needs data.shards"),
    ],
)
def test_shards_that_cannot_be_looked_for_are_refused(tmp_path, files, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        found(files, root=tmp_path)
