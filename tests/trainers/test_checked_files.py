"""A flipped bit or a lost end of a file of ours is found out; nothing altered is ever read."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from trainers import ActivationStore, DamagedFileError, StateError, load_state, load_weights, save_state, save_weights
from trainers.checked_files import BLOCK
from trainers.data import Preprocessing
from trainers.data.cache import FileIndex, read_sizes
from trainers.data.pixels import upright_size
from trainers.data.reading import read_images
from trainers.reuse.rows import RowLayout
from trainers.reuse.store import Content

TENSORS = {"b": torch.arange(300, dtype=torch.float32), "a": torch.randn(3, 5).bfloat16(), "n": torch.arange(4)}
CONTENT = Content("w", "test_resnet", 3, 64, "2: layer1", "f", "train", "plain", 0, "cpu fp32")
LAYOUTS = (RowLayout((40,), torch.float32, 0, 1, (0, 1)),)
ROWS = torch.randn(20, 40)
HOW = Preprocessing(8)
ROW = 3 * 8 * 8

# A bit, or the place where the file ends, as a share of the file's length.
DAMAGES = st.tuples(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
bounded = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(content: bytes, damage: tuple[bool, float, int]) -> bytes:
    is_flip, share, bit = damage
    at = int(share * len(content))
    return content[:at] + (bytes([content[at] ^ 1 << bit]) + content[at + 1 :] if is_flip else b"")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


@bounded
@given(damage=DAMAGES)
def test_a_damaged_state_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "1.pt"
    if not path.exists():
        save_state({"model": TENSORS, "epoch": 3, "results": [{"loss": 0.5}]}, path)
        assert load_state(path)["epoch"] == 3
        shutil.copy(path, tmp_path / "whole")
    path.write_bytes(damaged((tmp_path / "whole").read_bytes(), damage))
    with pytest.raises(StateError, match=r"1\.pt is damaged"):
        load_state(path)


@bounded
@given(damage=DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_or_its_tensors_are_what_they_were(tmp_path, damage):
    path = tmp_path / "checkpoint.safetensors"
    if not path.exists():
        save_weights(TENSORS, path)
        assert equal(load_weights(path), TENSORS)
        shutil.copy(path, tmp_path / "whole")
    path.write_bytes(damaged((tmp_path / "whole").read_bytes(), damage))
    try:
        # A flipped bit in the digest's name hides the digest.
        assert equal(load_weights(path), TENSORS)
    except DamagedFileError as error:
        assert str(path) in str(error)


def test_a_checkpoint_of_an_earlier_version_is_read_and_its_length_is_checked(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_file(TENSORS, path)
    assert equal(load_weights(path), TENSORS)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DamagedFileError, match=str(path)):
        load_weights(path)


@bounded
@given(damage=DAMAGES)
def test_damaged_activations_are_not_found(tmp_path, damage):
    (path,) = entries(tmp_path) or [built(tmp_path)]
    whole = tmp_path / "whole"
    if not whole.exists():
        shutil.copy(path, whole)
    path.write_bytes(damaged(whole.read_bytes(), damage))
    assert ActivationStore(tmp_path, 2**30).find(CONTENT, LAYOUTS, 20) is None


def entries(cache: Path) -> list[Path]:
    return list((cache / "activations").glob("*.safetensors"))


def built(cache: Path) -> Path:
    ActivationStore(cache, 2**30).build(CONTENT, LAYOUTS, 20, lambda: [(ROWS,)])
    assert ActivationStore(cache, 2**30).find(CONTENT, LAYOUTS, 20) is not None
    return entries(cache)[0]


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 17, -1])
def test_every_block_of_a_large_file_is_checked(tmp_path, place):
    path = tmp_path / "large.pt"
    save_state({"zeros": torch.zeros(3 * BLOCK, dtype=torch.uint8)}, path)
    assert torch.equal(load_state(path)["zeros"], torch.zeros(3 * BLOCK, dtype=torch.uint8))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match="is damaged"):
        load_state(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Six images and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 10 + seed, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    (folder / "6.png").write_bytes(b"no image")
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    return sorted(folder.iterdir())


Opened = tuple[np.ndarray, set[int], list[object]]


def opened(images: list[Path], cache: Path) -> Opened:
    """Pixels of the good images, positions of the bad ones, and all sizes."""
    read = read_images(images, HOW, cache=cache, max_bytes=2**30, progress=lambda *_: None)
    assert read.array is not None
    with closing(FileIndex(cache / "files.sqlite")) as index:
        sizes = read_sizes(images[:6], read.contents[:6], upright_size, "upright size 1", index)
    return read.array.pixels[read.array.rows[:6]], set(read.reasons), list(sizes)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> tuple[Path, Opened]:
    """A cache that holds the images, and what it gives."""
    cache = tmp_path_factory.mktemp("whole")
    return cache, opened(images, cache)


@settings(parent=bounded, max_examples=50)
@given(damage=DAMAGES, which=st.integers(0, 4))
def test_whatever_is_damaged_in_the_cache_of_images_the_images_are_what_they_were(
    images, whole, tmp_path, damage, which
):
    cache, (expected, bad, sizes) = tmp_path / "cache", whole[1]
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(whole[0], cache)
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    assert len(files) == 5
    files[which].write_bytes(damaged(files[which].read_bytes(), damage))
    for _ in range(2):
        found = opened(images, cache)
        assert np.array_equal(found[0], expected)
        assert found[1:] == (bad, sizes)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_row_that_was_damaged_after_a_kill_is_decoded_anew(images, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (folder,) = (tmp_path / "images").glob("*/*")
    part = folder.with_suffix(".part")
    folder.rename(part)
    (part / "reasons.json").unlink()
    flip(part / "pixels.npy", -2 * ROW)
    flip(part / "pixels.npy", -3 * ROW)
    assert np.array_equal(opened(images, tmp_path)[0], whole[1][0])


def test_of_a_damaged_array_only_the_damaged_images_are_decoded_anew(images, whole, tmp_path, caplog):
    cache = tmp_path / "cache"
    shutil.copytree(whole[0], cache)
    (folder,) = (cache / "images").glob("*/*")
    copies = [Path(shutil.copy2(path, tmp_path)) for path in images]
    first = read_images(copies, HOW, cache=cache, max_bytes=2**30, progress=lambda *_: None).array
    assert first is not None
    flip(folder / "pixels.npy", int(first.rows[2] - len(images)) * ROW)
    for path in (*copies[:2], *copies[3:]):
        changed = path.stat().st_mtime_ns
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(changed, changed))
    assert np.array_equal(opened(copies, cache)[0], whole[1][0])
    assert f"{folder} is damaged and is made anew" in caplog.text
