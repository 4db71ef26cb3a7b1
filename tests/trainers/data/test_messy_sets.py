"""Sets as people have them: separators of other countries, missing files, other suffixes, classes too small."""

from importlib.util import find_spec

import numpy as np
import placed_sets
import pytest
from PIL import Image

from strategies import DataError
from trainers.data import decode, open_data, short_side_of
from trainers.data.pixels import Preprocessing

OPTIONS = placed_sets.OPTIONS | {"task": "classification", "image_size": 8}


def opened(cache, **changes):
    return open_data(**OPTIONS | {"root": None, "cache": str(cache)} | changes)


def picture(seed, side=12):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side + seed % 5, side, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Two classes of six images, one of them nested, with a space and letters beyond ASCII in their names."""
    for c, name in enumerate(("cat", "große hunde")):
        (tmp_path / "set" / name / "more").mkdir(parents=True)
        for k in range(6):
            picture(10 * c + k).save(tmp_path / "set" / name / ("more" if k % 2 else ".") / f"bild {k} ä.png")
    return tmp_path / "set"


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_manifest_with_semicolons_or_tabs_is_read_which_is_said(separator, name, root, tmp_path, caplog):
    names = sorted(root.rglob("*.png"))
    rows = [("path", "label", "price"), *((path, path.relative_to(root).parts[0], "1,5") for path in names)]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(separator.join(map(str, row)) for row in rows))
    data = opened(tmp_path / "cache", source="manifest", manifest=str(file))
    assert data.classes == ("cat", "große hunde")
    assert len(data.train) + len(data.val) + len(data.test) == 12
    assert caplog.messages.count(f"{file}: columns are separated by {name}") == 1


def test_images_of_a_manifest_that_are_not_there_are_refused_with_the_folder_they_were_looked_for_in(root, tmp_path):
    file = tmp_path / "labels.csv"
    rows = [f"{k}.png,{'ab'[k % 2]}" for k in range(12)]
    file.write_text("\n".join(["path,label", *rows]))
    with pytest.raises(DataError, match=rf"cannot be read \(.*beside the manifest, in {tmp_path}; data\.root names"):
        opened(tmp_path / "cache", source="manifest", manifest=str(file))
    with pytest.raises(DataError, match=rf"looked for in data\.root={root.parent}"):
        opened(tmp_path / "cache", source="manifest", manifest=str(file), root=str(root.parent))


def test_files_that_are_passed_over_are_named_by_their_suffix(root, tmp_path, caplog):
    for name in ("a.MOV", "b.MOV", "notes"):
        (root / "cat" / name).write_text("no picture")
    opened(tmp_path / "cache", source="folder", root=str(root))
    assert f"{root}: passed over 1 suffixless file, 2 .MOV files" in caplog.text


def test_a_photograph_of_a_phone_is_read_or_the_package_that_reads_it_is_named(root, tmp_path, caplog):
    file = root / "cat" / "IMG_1.HEIC"
    how = Preprocessing(8)
    if find_spec("pillow_heif") is None:
        file.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
        with pytest.raises(DataError, match=r"a HEIC file, which needs pip install pillow-heif"):
            decode(file, how)
        opened(tmp_path / "cache", source="folder", root=str(root))
        assert "1 .HEIC file; pip install pillow-heif reads HEIC" in caplog.text
    else:
        grey = Image.new("RGB", (64, 48), (90, 120, 200))
        grey.save(file)
        assert np.abs(decode(file, how).reshape(3, -1).T - np.array([90, 120, 200])).max() < 8
        data = opened(tmp_path / "cache", source="folder", root=str(root))
        assert len(data.train) + len(data.val) + len(data.test) == 13


def test_all_problems_of_a_set_are_told_at_once_and_can_be_skipped(root, tmp_path, caplog):
    for name, count in (("rare", 2), ("empty", 0)):
        (root / name).mkdir()
        for k in range(count):
            picture(50 + k).save(root / name / f"{k}.png")
    whole = (root / "cat" / "bild 0 ä.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "film.mov").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "cache", source="folder", root=str(root))
    said = str(caught.value)
    assert said.startswith("the data set has 4 problems; data.on_small_class=skip leaves out such classes, ")
    assert "data.on_bad_image=skip images that cannot be read" in said
    for problem in (
        f"class folder {root}/empty has no images",
        "class 'rare' has 2 images, but 3 are needed, one for each split",
        "cut.png: damaged image",
        "passed over 1 .mov file",
    ):
        assert problem in said
    data = opened(tmp_path / "cache", source="folder", root=str(root), on_small_class="skip", on_bad_image="skip")
    assert data.classes == ("cat", "große hunde")
    assert len(data.skipped) == 1
    assert "data.on_small_class: 2 classes were left out" in caplog.text


def test_a_class_needs_no_more_images_than_there_are_splits_to_cut(root, tmp_path):
    (root / "rare").mkdir()
    for k in range(3):
        picture(50 + k).save(root / "rare" / f"{k}.png")
    assert "rare" in opened(tmp_path / "cache", source="folder", root=str(root)).classes


def test_the_size_of_images_is_known_before_and_after_they_are_read(root, tmp_path):
    how = OPTIONS | {"source": "folder", "root": str(root)}
    # Upright sides are 12, and 12 to 16.
    assert short_side_of(**how) == 12
    assert opened(tmp_path / "cache", source="folder", root=str(root)).short_side == 12
    (root / "cat" / "bild 0 ä.png").write_bytes(b"")
    assert short_side_of(**how) == 12
