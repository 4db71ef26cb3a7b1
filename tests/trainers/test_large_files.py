"""Large files that are mapped to memory are checked part by part, each before its first use, and mended."""

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import DATA, DEVICE, pretrained

from strategies import Strategy
from trainers import ActivationStore, DamagedFileError, Reuse, Trainer
from trainers.checked_files import AT_ONCE, BLOCK, CheckedParts
from trainers.data import Preprocessing
from trainers.data.reading import read_images
from trainers.data.split import ResidentSplit
from trainers.reuse import FrozenOutputs
from trainers.reuse.rows import RowLayout
from trainers.reuse.store import Content

CPU = torch.device("cpu")
CONTENT = Content("w", "test_resnet", 3, 64, "2: layer1", "f", "train", "plain", 0, "cpu fp32")
# A row is a little longer than a block, so that rows and blocks do not begin together.
LAYOUTS = (RowLayout((BLOCK // 4 + 3,), torch.float32, 0, 1, (0, 1)), RowLayout((5,), torch.int64, 0, 1, (0, 1)))
COUNT = AT_ONCE // BLOCK + 2
ROWS = tuple(torch.arange(COUNT * layout.shape[0]).view(COUNT, -1).to(layout.dtype) for layout in LAYOUTS)


@pytest.fixture
def no_thread(monkeypatch):
    """No thread goes ahead, as on a machine that is too busy for it."""
    monkeypatch.setattr(CheckedParts, "_go_ahead", lambda parts: None)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


@pytest.fixture
def entry(tmp_path) -> Path:
    ActivationStore(tmp_path, 2**30).build(CONTENT, LAYOUTS, COUNT, lambda: [ROWS])
    (path,) = (tmp_path / "activations").glob("*.safetensors")
    return path


def test_a_thread_goes_ahead_and_no_part_is_checked_twice():
    seen: list[int] = []
    parts = CheckedParts(9, AT_ONCE + 1, lambda some: seen.extend(some.tolist()) or some[some == 7])
    for thread in threading.enumerate():
        if thread.name == "checks":
            thread.join()
    assert seen == list(range(9))
    # A damaged part stays damaged for each who uses it; the sound ones are not looked at again.
    assert parts.damaged(np.array([8, 7, 1, 7])).tolist() == [7]
    assert seen == [*range(9), 7]
    parts.passed(np.array([7]))
    assert parts.all_damaged().tolist() == []


@pytest.mark.usefixtures("no_thread")
def test_rows_are_read_beside_damage_and_no_damaged_row_is(tmp_path, entry):
    found = ActivationStore(tmp_path, 2**30).find(CONTENT, LAYOUTS, COUNT)
    # In row 5 of the tensor that lies behind the other: integers are the wider numbers.
    flip(entry, -(COUNT - 5) * LAYOUTS[0].bytes + 100)
    good = [row for row in range(COUNT) if abs(row - 5) > 1]
    for (batch, _), rows in zip(found.batches(torch.tensor(good), 4, CPU), torch.tensor(good).split(4), strict=True):
        assert torch.equal(batch, ROWS[0][rows])
    with pytest.raises(DamagedFileError, match=f"{entry} is damaged"):
        list(found.batches(torch.tensor([4, 5]), 1, CPU))
    assert not found.is_sound()


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("seed", range(8))
def test_whatever_bit_of_a_large_file_is_flipped_it_is_found(tmp_path, entry, seed):
    at = int(np.random.default_rng(seed).integers(entry.stat().st_size if seed else 4096))
    flip(entry, at)
    found = ActivationStore(tmp_path, 2**30).find(CONTENT, LAYOUTS, COUNT)
    assert found is None or not found.is_sound()


@pytest.mark.usefixtures("no_thread")
def test_what_was_damaged_is_made_anew_in_the_middle_of_a_pass_and_named(tmp_path, entry, caplog):
    store = ActivationStore(tmp_path, 2**30)
    rows = store.find(CONTENT, LAYOUTS, COUNT)
    flip(entry, -100)
    outputs = FrozenOutputs(None, rows, lambda: store.build(CONTENT, LAYOUTS, COUNT, lambda: [ROWS]))
    for _ in range(2):
        order = torch.randperm(COUNT)
        batches = list(outputs.batches(order, 3, CPU))
        assert torch.equal(torch.cat([batch for batch, _ in batches]), ROWS[0][order])
        assert torch.equal(torch.cat([batch for _, batch in batches]), ROWS[1][order])
    assert f"{entry} is damaged: its rows do not agree with their checksums; it is made anew" in caplog.text
    assert ActivationStore(tmp_path, 2**30).find(CONTENT, LAYOUTS, COUNT).is_sound()


def test_a_trial_whose_activations_are_damaged_ends_as_if_they_were_not(tmp_path, monkeypatch, caplog):
    # So that these small files are checked as large ones are.
    monkeypatch.setattr("trainers.reuse.entry.AT_ONCE", 0)
    source, strategy = pretrained("test_resnet"), Strategy(depth=1, epochs=2, batch_size=16)

    def trained() -> list[dict[str, float]]:
        reuse = Reuse(ActivationStore(tmp_path, 2**30), always=True)
        return [result.metrics for result in Trainer(source, DATA, strategy, 0, DEVICE, reuse=reuse)]

    expected = trained()
    entries = sorted((tmp_path / "activations").glob("*.safetensors"))
    assert len(entries) == 2
    for entry in entries:
        flip(entry, -20)
    assert trained() == expected
    for entry in entries:
        assert f"{entry} is damaged: its rows do not agree with their checksums" in caplog.text
    caplog.clear()
    assert trained() == expected
    assert not caplog.records


HOW = Preprocessing(512)
IMAGES = AT_ONCE // (3 * 512 * 512) + 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of images, and a cache of them."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(IMAGES):
        Image.new("RGB", (4, 4), (number, 7, 9)).save(folder / f"{number:02}.png")
    opened(folder)
    return folder


def opened(folder: Path) -> ResidentSplit:
    images = sorted(folder.glob("*.png"))
    array = read_images(images, HOW, cache=folder / "cache", max_bytes=2**30, progress=lambda *_: None).array
    assert array is not None
    return ResidentSplit(torch.arange(IMAGES), list(map(str, images)), array.pixels, array.rows, array.check)


def first_channel(split: ResidentSplit) -> list[set[int]]:
    batches = split.batches(torch.arange(IMAGES), 4, CPU)
    return [set(image[0].unique().tolist()) for images, _ in batches for image in images]


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("file", ["pixels.npy", "checks"])
def test_a_damaged_image_is_decoded_anew_before_it_is_used_and_mended_on_the_disk(made, tmp_path, file, caplog):
    folder = tmp_path / "made"
    shutil.copytree(made, folder)
    (array,) = (folder / "cache" / "images").glob("*/*")
    split = opened(folder)
    flip(array / file, -3)
    expected = [{number} for number in range(IMAGES)]
    assert first_channel(opened(folder)) == expected
    assert f"{array} was damaged: an image was decoded anew" in caplog.text
    caplog.clear()
    assert first_channel(opened(folder)) == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    # What another process has mapped is the mended file.
    assert first_channel(split) == expected


@pytest.mark.usefixtures("no_thread")
def test_a_damaged_image_whose_file_is_gone_is_an_error_and_named_at_the_next_start(made, tmp_path):
    folder = tmp_path / "made"
    shutil.copytree(made, folder)
    (array,) = (folder / "cache" / "images").glob("*/*")
    flip(array / "pixels.npy", -3)
    split = opened(folder)
    for path in folder.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DamagedFileError, match=f"{array} is damaged, and an image cannot be decoded anew"):
        first_channel(split)
    for path in made.glob("*.png"):
        shutil.copy2(path, folder)
    assert first_channel(opened(folder)) == [{number} for number in range(IMAGES)]
