"""Masks in files: indices and colours, palettes, what is ignored, and what is refused."""

import logging
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from placed_sets import by_name, noise, opened

from strategies import IGNORED, DataError
from trainers.data import centred

NAMES = [f"{k}.jpg" for k in range(8)]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def values(k, width=16, height=12):
    """Indices 0 to 2 with all of them in each."""
    mask = np.random.default_rng(k).integers(0, 3, (height, width), dtype=np.uint8)
    mask[0, :3] = range(3)
    return mask


def fill(folder, masks, names=NAMES):
    for k, name in enumerate(names):
        for base in (folder, masks):
            (base / name).parent.mkdir(parents=True, exist_ok=True)
        noise(k).save(folder / name)
        Image.fromarray(values(k)).save((masks / name).with_suffix(".png"))


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "set", tmp_path / "masks")
    return tmp_path / "set"


def seen(root, **changes):
    return opened("segmentation", "masks", **{"root": str(root), "masks": str(root.parent / "masks")} | changes)


def refused(root, **changes):
    with pytest.raises(DataError) as caught:
        seen(root, **changes)
    return str(caught.value)


def test_masks_of_indices_are_laid_as_their_images_are(root):
    data = seen(root)
    assert data.classes == ("0", "1", "2")
    assert data.preprocessing.fit == "pad"
    assert data.train.targets.dtype == torch.uint8
    assert data.train.targets.shape == (len(data.train), 16, 16)
    assert "8 images" not in data.summary()
    assert "of 3 classes of pixels at 16 px" in data.summary()
    for name, target in by_name(data).items():
        assert np.array_equal(target, centred(16, 12, 16).mask_to_square(values(int(name[0]))))
        assert (target[:2] == IGNORED).all()


@pytest.mark.parametrize("size", [8, 16, 40])
def test_images_and_masks_of_a_size_show_the_same_places(root, size):
    for k, name in enumerate(NAMES):
        mask = np.zeros((12, 16), np.uint8)
        mask[k % 4 + 2 :, k + 1 :] = 1
        Image.fromarray(mask).save(root.parent / "masks" / f"{k}.png")
        Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)).save(root / name, quality=100)
    data = seen(root, image_size=size)
    for split in (data.train, data.val, data.test):
        ((images, targets),) = split.batches(torch.arange(len(split)), 9, torch.device("cpu"))
        counted = targets != IGNORED
        agreed = (images.float().mean(1) > 127) == (targets == 1)
        assert agreed[counted].float().mean() > 0.9
        assert (images.amax(1)[~counted] == 0).all()


def indexed(image, colours=((0, 0, 0), (255, 0, 0), (0, 255, 0))):
    """A picture of mode P."""
    picture = Image.fromarray(image, "P")
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


KINDS = {
    "a palette image": indexed,
    "a palette image of other colours": lambda mask: indexed(mask, ((9, 9, 9), (9, 9, 9), (9, 9, 9))),
    "grey": Image.fromarray,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_index_counts_whatever_its_colour(root, kind):
    plain = by_name(seen(root))
    for k in range(8):
        KINDS[kind](values(k)).save(root.parent / "masks" / f"{k}.png", bits=8)
    assert all(np.array_equal(target, plain[name]) for name, target in by_name(seen(root)).items())


def test_masks_of_few_bits_hold_the_index_that_the_file_does(root):
    plain = by_name(seen(root))
    for k in range(8):
        indexed(values(k)).save(root.parent / "masks" / f"{k}.png", bits=2)
    assert all(np.array_equal(target, plain[name]) for name, target in by_name(seen(root)).items())
    for k in range(8):
        Image.fromarray(values(k) > 0).save(root.parent / "masks" / f"{k}.png")
    data = seen(root)
    assert data.classes == ("0", "1")
    assert all(
        np.array_equal(target == 1, (plain[name] > 0) & (plain[name] < 9)) for name, target in by_name(data).items()
    )


def test_grey_of_four_bits_is_not_stretched(root, tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    for k in range(8):
        rows = values(k)
        packed = b"".join(b"\0" + bytes((row[0::2] << 4 | row[1::2]).tolist()) for row in rows)
        header = struct.pack(">IIBBBBB", 16, 12, 4, 0, 0, 0, 0)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
        (root.parent / "masks" / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert seen(root).classes == ("0", "1", "2")


COLOURS = np.asarray([(128, 64, 0), (0, 0, 0), (10, 200, 250), (255, 255, 255)], np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_classes_in_the_order_of_the_palette(root, tmp_path, mode):
    plain = by_name(seen(root))
    for k in range(8):
        Image.fromarray(COLOURS[values(k)]).convert(mode).save(root.parent / "masks" / f"{k}.png")
    rows = [f"class {k},{r},{g},{b}" for k, (r, g, b) in enumerate(COLOURS.tolist())]
    (tmp_path / "p.csv").write_text("\n".join(["name,red,green,blue", *rows]))
    data = seen(root, palette="p.csv")
    assert data.classes == ("class 0", "class 1", "class 2", "class 3")
    assert all(np.array_equal(target, plain[name]) for name, target in by_name(data).items())
    (tmp_path / "p.csv").write_text(
        "\n".join(["red,green,blue,name", *(f"{r.partition(',')[2]},{r[:7]}" for r in rows)])
    )
    void = seen(root, palette="p.csv", ignore_index=2)
    assert void.classes == ("class 0", "class 1", "class 3")
    expected = {name: np.where(target == 2, IGNORED, target) for name, target in plain.items()}
    assert all(np.array_equal(target, expected[name]) for name, target in by_name(void).items())


def test_a_palette_of_indices_names_classes_that_need_not_be_consecutive(root, tmp_path):
    for k in range(8):
        Image.fromarray(values(k) * np.uint8(100)).save(root.parent / "masks" / f"{k}.png")
    (tmp_path / "p.csv").write_text("name,index\nroad,200\nsky,0\ncar,100\nnever,7\n")
    data = seen(root, palette="p.csv")
    assert data.classes == ("road", "sky", "car", "never")
    for name, target in by_name(data).items():
        original = centred(16, 12, 16).mask_to_square(values(int(name[0])))
        assert np.array_equal(target, np.select([original == 2, original == 0, original == 1], [0, 1, 2], IGNORED))


def test_an_ignored_index_is_no_class(root):
    data = seen(root, ignore_index=0)
    assert data.classes == ("1", "2")
    for name, target in by_name(data).items():
        original = centred(16, 12, 16).mask_to_square(values(int(name[0])))
        assert np.array_equal(target, np.select([original == 1, original == 2], [0, 1], IGNORED))


def test_objects_marked_by_255_need_to_be_told_from_what_does_not_count(root, tmp_path):
    for k in range(8):
        Image.fromarray((values(k) == 1) * np.uint8(255)).save(root.parent / "masks" / f"{k}.png")
    assert "one class only, '0'" in (message := refused(root))
    assert "data.ignore_index=null" in message
    (tmp_path / "p.csv").write_text("name,index\nrest,0\nobject,255\n")
    assert "has 1 classes besides data.ignore_index=255" in refused(root, palette="p.csv")
    data = seen(root, palette="p.csv", ignore_index=None)
    assert data.classes == ("rest", "object")
    assert {int(value) for target in by_name(data).values() for value in target.flat} == {0, 1, IGNORED}


def test_split_folders_are_splits_and_masks_mirror_them(tmp_path):
    names = {"train": 5, "valid": 2, "test": 3}
    fill(
        tmp_path / "set",
        tmp_path / "masks",
        [f"{split}/deep/{k}.jpg" for split, many in names.items() for k in range(many)],
    )
    data = seen(tmp_path / "set")
    assert [len(split) for split in (data.train, data.val, data.test)] == [5, 2, 3]
    shutil.rmtree(tmp_path / "set" / "train")
    assert "but no folder 'train'" in refused(tmp_path / "set")


@pytest.mark.parametrize("masks", ["set", "set/masks"])
def test_masks_may_lie_in_the_folder_of_the_images(tmp_path, masks):
    fill(tmp_path / "set", tmp_path / masks)
    data = seen(tmp_path / "set", masks=str(tmp_path / masks))
    assert sorted(by_name(data)) == NAMES


def test_images_that_would_share_a_mask_are_refused(root):
    noise(99).save(root / "3.png")
    assert refused(root).startswith("data.masks: 1 masks belong to two images")


def small(path):
    Image.fromarray(values(0)[:, :9]).save(path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:60])


BAD = {
    "is missing": (lambda path: path.unlink(), r"mask .*/masks/3\.png: No such file"),
    "has another size": (small, r"mask .*/masks/3\.png: has 9 x 12 pixels, its image 16 x 12 pixels"),
    "is cut off": (cut_off, r"mask .*/masks/3\.png: damaged image"),
    "is no image": (lambda path: path.write_text("x"), r"mask .*/masks/3\.png: not an image in a known format"),
    "is a JPEG file": (lambda path: noise(1).save(path, "JPEG"), r"is a JPEG file; masks are PNG"),
    "has 16 bits": (
        lambda path: Image.fromarray(values(3).astype(np.uint16)).save(path),
        r"is of Pillow's mode I;16; masks have indices of 8 bits or less",
    ),
    "has colours": (lambda path: noise(1).save(path), r"its classes are colours; data\.palette"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_an_image_whose_mask_cannot_be_used_is_a_bad_image(root, what, cache_gib):
    spoil, message = BAD[what]
    spoil(root.parent / "masks" / "3.png")
    text = refused(root, cache_gib=cache_gib)
    assert text.startswith("1 of 8 images and their labels cannot be read; data.on_bad_image=skip leaves them out")
    assert re.search(rf"\n  {root}/3\.jpg: .*{message}", text)
    data = seen(root, on_bad_image="skip", cache_gib=cache_gib)
    assert sorted(by_name(data)) == [name for name in NAMES if name != "3.jpg"]
    assert len(data.skipped) == 1


def test_classes_beyond_the_palette_are_named_with_the_mask(root, tmp_path):
    (tmp_path / "p.csv").write_text("name,index\na,0\nb,1\n")
    text = refused(root, palette="p.csv")
    assert "3.jpg: mask" in text and "its index 2 is not a row of data.palette" in text
    (tmp_path / "p.csv").write_text("name,red,green,blue\na,0,0,0\nb,128,64,0\n")
    for k in range(8):
        Image.fromarray(COLOURS[values(k)]).save(root.parent / "masks" / f"{k}.png")
    assert "its colour (10, 200, 250) is not in data.palette" in refused(root, palette="p.csv")


PALETTES = {
    "name,colour\na,1\n": "has the columns name, colour; expected name,index or name,red,green,blue",
    "": "has the columns none",
    "name,index\na,0\na,1\n": "line 3: the name 'a' is there twice",
    "name,index\na,0\nb,0\n": "line 3: 'b' has the numbers of 'a'",
    "name,index\na,0\nb,256\n": "line 3: 'b' needs whole numbers from 0 to 255",
    "name,index\na,0\n,1\n": "line 3: no name",
    "name,red,green,blue\na,0,0,0\nb,0,0,-1\n": "line 3: 'b' needs whole numbers from 0 to 255",
    "name,red,green,blue\na,0,0,0\nb,0,0,0\n": "line 3: 'b' has the numbers of 'a'",
    "name,index\na,0\n": "has 1 classes besides data.ignore_index=255",
    "name,index\n" + "".join(f"c{k},{k}\n" for k in range(300)): "44 rows cannot be used",
}


@pytest.mark.parametrize("content", PALETTES)
def test_a_palette_that_cannot_be_used_is_refused(root, tmp_path, content):
    (tmp_path / "p.csv").write_text(content)
    text = refused(root, palette="p.csv")
    assert text.startswith("data.palette=p.csv")
    assert PALETTES[content] in text
    assert len(text.splitlines()) <= 12


def test_places_that_do_not_exist_are_refused_by_key(root, tmp_path):
    assert refused(root, masks=None).startswith("data.source=masks needs data.masks, the folder that holds the masks")
    assert refused(root, masks="gone").startswith("data.masks=gone does not exist")
    assert refused(root, palette="gone.csv").startswith("data.palette=gone.csv does not exist")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").startswith("data.root=")
    with pytest.raises(
        DataError, match=r"data\.source=masks has labels for segmentation only; for task=detection take"
    ):
        opened("detection", "masks", root=str(root), masks="masks")


def test_masks_are_part_of_the_fingerprint_and_their_size_is_not(root):
    first = seen(root).fingerprint
    assert seen(root).fingerprint == first
    assert seen(root, image_size=8, cache_gib=0.0).fingerprint == first
    assert seen(root, ignore_index=None).fingerprint != first
    mask = values(3)
    mask[5, 5] = (mask[5, 5] + 1) % 3
    Image.fromarray(mask).save(root.parent / "masks" / "3.png")
    assert seen(root).fingerprint != first


def test_streamed_images_have_the_targets_of_stored_ones(root):
    stored, streamed = seen(root), seen(root, cache_gib=0.0)
    assert not streamed.train.resident
    for name in ("train", "val", "test"):
        one, other = getattr(stored, name), getattr(streamed, name)
        assert one.names == other.names
        assert torch.equal(one.targets, other.targets)
        order = torch.arange(len(one))
        for (a, b), (c, d) in zip(
            one.batches(order, 2, torch.device("cpu")), other.batches(order, 2, torch.device("cpu")), strict=True
        ):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_equal_images_of_different_masks_are_reported(tmp_path, caplog):
    fill(
        tmp_path / "set",
        tmp_path / "masks",
        [f"{split}/{k}.jpg" for split in ("train", "val", "test") for k in range(2)],
    )
    shutil.copy(tmp_path / "set/train/0.jpg", tmp_path / "set/val/1.jpg")
    with caplog.at_level(logging.WARNING):
        data = seen(tmp_path / "set")
    assert re.search(r"0\.jpg \(mask [0-9a-f]{16}\) = .*1\.jpg \(mask [0-9a-f]{16}\)", caplog.text)
    assert len(data.duplicates) == 1
    assert len(seen(tmp_path / "set", on_duplicates="move").train) == 3


def test_limits_and_folds_hold_without_any_class_in_each_part(root):
    data = seen(root, limit_train=2, limit_val=1, limit_test=1)
    assert [len(split) for split in (data.train, data.val, data.test)] == [2, 1, 1]
    folded = [set(seen(root, folds=3, fold=fold).val.names) for fold in range(3)]
    assert len(set().union(*folded)) == sum(map(len, folded)) == 6
