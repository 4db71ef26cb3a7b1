"""The cache of decoded images and the index of files: what is read or decoded once, and what no accident spoils."""

import itertools
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from copies import copies
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from strategies import DataError
from trainers.data import PixelCache, Preprocessing, decode, open_data
from trainers.data.cache.file_index import Digests, FileIndex, Stamp, content_digests, digests_of, take_stamps
from trainers.data.cache.pixel_cache import DECODING, WAITING
from trainers.data.found import DatasetItem, Part
from trainers.data.reading import READING, read_images

CPU = torch.device("cpu")
LONG_AGO = 1_000_000_000 * 10**9
ROW = 3 * 16 * 16
GIB = 2**30
HOW = Preprocessing(16)


def noise(seed, side=20):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def reconcile_runs(path, time_ns=LONG_AGO):
    """A file that was last changed long ago, as most are."""
    os.utime(path, ns=(time_ns, time_ns))


def fill(root, seeds, suffix="png"):
    """An image a seed, in two classes; all of one size in bytes if they are bitmaps."""
    for k, seed in enumerate(seeds):
        path = root / "ab"[k % 2] / f"{seed}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed).save(path)
        reconcile_runs(path)
    return root


def files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def spoil(path):
    """Zeros instead of the content, and nothing that shows it: whoever reads the file finds no image."""
    changed = path.stat().st_mtime_ns
    path.write_bytes(bytes(path.stat().st_size))
    reconcile_runs(path, changed)


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "set", range(24))


def opened(root, cache, *, task="classification", **changes):
    options = {
        "source": "folder",
        "root": str(root),
        "cache": str(cache),
        "image_size": 16,
        "in_chans": 3,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        "split_seed": 0,
        "fold": 0,
        "on_bad_image": "refuse",
        "on_duplicates": "report",
        "cache_gib": 1.0,
        "workers": 0,
    }
    for name in ("dataset", "manifest", "annotations", "shards", "columns", "max_value", "folds"):
        options[name] = None
    options |= {f"limit_{split}": None for split in ("train", "val", "test")}
    return open_data(task=task, **options | changes)


def read(paths, cache, max_bytes=GIB, how=HOW):
    """What reading the files gives, and the calls that tell of its progress."""
    said = []
    result = read_images(paths, how, cache=cache, max_bytes=max_bytes, progress=lambda *call: said.append(call))
    return result, said


def contents(data):
    """All images of a data set, by name."""
    found = {}
    for split in (data.train, data.val, data.test):
        images = torch.cat([images for images, _ in split.batches(torch.arange(len(split)), 7, CPU)])
        found |= {Path(name).name: image for name, image in zip(split.names, images, strict=True)}
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def arrays(cache):
    return sorted((cache / "images").glob("*/*"))


def pixels(result):
    return result.array.pixels[result.array.rows]


# What is read and decoded again, and what is not


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_a_second_opening_reads_no_file(root, tmp_path, cache_gib):
    first = opened(root, tmp_path / "cache", cache_gib=cache_gib)
    before = contents(first)
    for path in files(root):
        spoil(path)
    said = []
    second = opened(root, tmp_path / "cache", cache_gib=cache_gib, progress=lambda *call: said.append(call))
    assert second.fingerprint == first.fingerprint
    assert second.train.resident == (cache_gib > 0)
    assert said == []
    if cache_gib:
        assert same(contents(second), before)


def test_a_file_of_the_same_size_but_another_time_is_read_again(tmp_path):
    root = fill(tmp_path / "set", range(24), "bmp")
    first = opened(root, tmp_path / "cache")
    path = root / "a" / "4.bmp"
    noise(99).save(path)
    reconcile_runs(path, LONG_AGO + 1)
    second = opened(root, tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    assert np.array_equal(contents(second)["4.bmp"].numpy(), decode(path, HOW))


def test_a_file_that_changed_twice_within_a_tick_of_the_clock_is_read_again(tmp_path):
    path = tmp_path / "a.bmp"
    noise(1).save(path)
    tick = path.stat().st_mtime_ns
    read([path], tmp_path / "cache")
    noise(2).save(path)
    reconcile_runs(path, tick)
    again, _ = read([path], tmp_path / "cache")
    assert np.array_equal(pixels(again)[0], decode(path, HOW))


def test_a_copy_elsewhere_has_the_same_fingerprint_and_is_not_decoded_again(tmp_path):
    # With splits of its own, as a split that is cut depends on the order in which images are found.
    for k, split in enumerate(("train", "val", "test")):
        fill(tmp_path / "set" / split, range(100 * k, 100 * k + 8))
    shuffled = random.Random(0).sample(range(24), 24)
    for path, number in zip(files(tmp_path / "set"), shuffled, strict=True):
        copy = (tmp_path / "copy" / path.relative_to(tmp_path / "set")).with_name(f"{number}.png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    said = []
    one = opened(tmp_path / "set", tmp_path / "cache")
    other = opened(tmp_path / "copy", tmp_path / "cache", progress=lambda *call: said.append(call))
    assert one.fingerprint == other.fingerprint
    assert {what for what, *_ in said} == {READING}
    assert len(arrays(tmp_path / "cache")) == 1


def test_the_fingerprint_changes_with_one_pixel_one_label_or_one_split(root, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(root, tmp_path / "whole" / split)
    whole = tmp_path / "whole"
    seen = [opened(whole, tmp_path / "cache").fingerprint]
    changed = whole / "train" / "a" / "4.png"
    picture = Image.open(changed)
    picture.putpixel((3, 3), (1, 2, 3))
    picture.save(changed)
    seen.append(opened(whole, tmp_path / "cache").fingerprint)
    changed.rename(whole / "train" / "b" / "4.png")
    seen.append(opened(whole, tmp_path / "cache").fingerprint)
    (whole / "train" / "b" / "4.png").rename(whole / "val" / "b" / "4.png")
    seen.append(opened(whole, tmp_path / "cache").fingerprint)
    assert len(set(seen)) == 4


def test_of_a_set_that_grew_only_new_images_are_decoded(root, tmp_path):
    old = files(root)
    before, _ = read(old, tmp_path / "cache")
    kept = pixels(before).copy()
    for path in old:
        spoil(path)
    new = files(fill(tmp_path / "more", range(100, 110)))
    grown, said = read([*new[:3], *old, *new[3:]], tmp_path / "cache")
    assert not grown.reasons
    assert np.array_equal(pixels(grown)[3:27], kept)
    for path, image in zip(new[:3], pixels(grown), strict=False):
        assert np.array_equal(image, decode(path, HOW))
    assert [total for what, _, total in said if what == READING] == [10]


def test_a_part_of_a_set_is_taken_from_the_array_of_the_whole(root, tmp_path):
    whole, _ = read(files(root), tmp_path / "cache")
    part, said = read(files(root)[3:9], tmp_path / "cache")
    assert said == []
    assert len(arrays(tmp_path / "cache")) == 1
    assert np.array_equal(pixels(part), pixels(whole)[3:9])


def test_equal_images_share_a_row(root, tmp_path):
    shutil.copy(files(root)[0], root / "copy.png")
    result, _ = read([*files(root), root / "copy.png"], tmp_path / "cache")
    assert len(result.array.pixels) == 24
    assert len(pixels(result)) == 26


def test_another_preprocessing_is_another_array(root, tmp_path):
    read(files(root), tmp_path / "cache")
    small, _ = read(files(root), tmp_path / "cache", how=Preprocessing(8))
    assert small.array.pixels.shape == (24, 3, 8, 8)
    assert len(arrays(tmp_path / "cache")) == 2


def large(path, seed, middle=0):
    """A bitmap of 270 kB of which no digest sees the middle."""
    picture = noise(seed, 300)
    picture.paste((middle, middle, middle), (0, 100, 300, 120))
    picture.save(path)
    reconcile_runs(path)
    return path


def test_a_change_that_no_sample_sees_still_gives_the_right_picture(tmp_path):
    one, other = large(tmp_path / "one.bmp", 1), large(tmp_path / "other.bmp", 1, 255)
    first, _ = read([one], tmp_path / "cache")
    second, _ = read([other], tmp_path / "cache")
    assert first.samples == second.samples
    assert first.contents != second.contents
    assert np.array_equal(pixels(second)[0], decode(other, HOW))
    assert not np.array_equal(pixels(second)[0], pixels(first)[0])


def test_a_change_hidden_by_size_and_time_is_found_when_the_pixels_are_needed(tmp_path):
    path = fill(tmp_path / "set", [1], "bmp") / "a" / "1.bmp"
    read([path], tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "images")
    noise(2).save(path)
    reconcile_runs(path)
    again, _ = read([path], tmp_path / "cache")
    assert not again.reasons
    assert again.contents == [content_digests(path.read_bytes()).content]
    assert np.array_equal(pixels(again)[0], decode(path, HOW))


class Restless:
    """A data set whose image is another one each time."""

    def __init__(self):
        self.seeds = itertools.count()

    def __getitem__(self, index):
        return noise(next(self.seeds)), 0


def test_an_image_that_changes_all_the_time_is_bad(root, tmp_path):
    result, _ = read([*files(root), DatasetItem(Restless(), 0)], tmp_path / "cache")
    assert result.reasons == {24: "the file is changing while it is being read"}
    assert result.samples[24] == result.contents[24] == b""
    assert len(result.array.pixels) == 24


# Bad images


@pytest.mark.parametrize("max_bytes", [GIB, 0])
def test_a_bad_image_is_known_as_such_and_a_repaired_one_is_good(root, tmp_path, max_bytes):
    bad = root / "a" / "bad.png"
    bad.write_bytes(b"x" * 100)
    reconcile_runs(bad)
    first, _ = read(files(root), tmp_path / "cache", max_bytes)
    again, said = read(files(root), tmp_path / "cache", max_bytes)
    position = files(root).index(bad)
    assert first.reasons == again.reasons == {position: "not an image in a known format"}
    assert said == []
    noise(5).save(bad)
    assert not read(files(root), tmp_path / "cache", max_bytes)[0].reasons


@pytest.mark.parametrize("max_bytes", [GIB, 0])
def test_a_file_repaired_where_no_sample_sees_it_is_good(tmp_path, max_bytes):
    path = tmp_path / "large.png"
    noise(1, 300).save(path)
    whole = path.read_bytes()
    place = len(whole) // 4
    for k, content in enumerate([whole[:place] + b"damage" + whole[place + 6 :], whole]):
        path.write_bytes(content)
        reconcile_runs(path, LONG_AGO + k)
        result, _ = read([path], tmp_path / "cache", max_bytes)
        assert bool(result.reasons) == (k == 0)


def test_a_bad_image_is_still_bad_in_a_set_that_grew(root, tmp_path):
    bad = root / "a" / "bad.png"
    bad.write_bytes(b"x" * 100)
    read(files(root), tmp_path / "cache")
    fill(root, [100])
    assert read(files(root), tmp_path / "cache")[0].reasons == {
        files(root).index(bad): "not an image in a known format"
    }


@pytest.mark.parametrize("max_bytes", [GIB, 0])
def test_what_cannot_be_read_now_is_not_remembered(root, tmp_path, max_bytes):
    paths = files(root)
    paths[4].rename(tmp_path / "away.png")
    first, _ = read(paths, tmp_path / "cache", max_bytes)
    assert first.reasons == {4: "No such file or directory"}
    (tmp_path / "away.png").rename(paths[4])
    assert not read(paths, tmp_path / "cache", max_bytes)[0].reasons


def test_a_streamed_set_is_verified_once_wherever_its_files_lie(root, tmp_path):
    _, said = read(files(root), tmp_path / "cache", 0)
    assert said[-1] == (DECODING, 24, 24)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    _, said = read(files(tmp_path / "copy"), tmp_path / "cache", 0)
    assert {what for what, *_ in said} == {READING}
    _, said = read(files(root), tmp_path / "cache", 0, how=Preprocessing(8))
    assert said == []


# The bound


def test_arrays_not_used_for_longest_make_room(tmp_path):
    sets = [files(fill(tmp_path / f"set{k}", range(100 * k, 100 * k + 10))) for k in range(3)]
    bound = 2 * 10 * ROW + 1000
    for paths in (sets[0], sets[1], sets[0], sets[2]):
        read(paths, tmp_path / "cache", bound)
        time.sleep(0.02)
        assert sum((folder / "pixels.npy").stat().st_size for folder in arrays(tmp_path / "cache")) <= bound + 1000
    said = [read(paths, tmp_path / "cache", bound)[1] for paths in (sets[0], sets[2], sets[1])]
    assert [bool(calls) for calls in said] == [False, False, True]


def test_a_set_above_the_bound_is_streamed_and_removes_nothing(root, tmp_path):
    small = files(fill(tmp_path / "small", range(100, 104)))
    read(small, tmp_path / "cache", 10 * ROW)
    before = arrays(tmp_path / "cache")
    result, _ = read(files(root), tmp_path / "cache", 10 * ROW)
    assert result.array is None
    assert arrays(tmp_path / "cache") == before


def test_an_array_that_was_removed_can_still_be_used(root, tmp_path):
    result, _ = read(files(root), tmp_path / "cache")
    kept = pixels(result).copy()
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(pixels(result), kept)


# Accidents

SLOWLY = """
import sys, time
from pathlib import Path
from trainers.data import reading; from trainers.data.cache import pixel_cache
from trainers.data import Preprocessing

pixel_cache.cores = lambda: 2
decoded = reading.squared

def slowly(content, how):
    time.sleep(0.02)
    return decoded(content, how)

reading.squared = slowly
paths = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file())
said = set()
def progress(what, done, total):
    if what not in said:
        said.add(what)
        print(what, flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
reading.read_images(paths, Preprocessing(16), cache=Path(sys.argv[2]), max_bytes=2**30, progress=progress)
"""


@contextmanager
def slow_readers(root, cache, count=1):
    """Processes that decode a set, 10 ms an image, and that begin together."""
    begin = cache.parent / "begin"
    arguments = [str(root), str(cache), str(begin)]
    processes = [copies().start(SLOWLY, arguments, cache.parent, os.environ) for _ in range(count)]
    try:
        begin.touch()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(condition, process):
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, "the process ended too early"
        time.sleep(0.05)
    raise AssertionError("waited for five minutes")


def done_rows(cache):
    found = (cache / "images").glob("*/*.part/checks")
    return sum(np.count_nonzero(np.fromfile(checks, dtype=np.uint32)) for checks in found)


@pytest.fixture
def killed(tmp_path):
    """How many of the 300 images of a set were done when the process that decoded them was killed."""
    root = fill(tmp_path / "set", range(300))
    with slow_readers(root, tmp_path / "cache") as (process,):
        wait_for(lambda: done_rows(tmp_path / "cache") > 0, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = done_rows(tmp_path / "cache")
    assert 0 < done < 300
    assert [path.suffix for path in arrays(tmp_path / "cache")] == [".part"]
    return done


def test_after_a_kill_the_next_opening_goes_on_and_ends_as_if_nothing_had_been(killed, tmp_path):
    root = tmp_path / "set"
    result, said = read(files(root), tmp_path / "cache")
    assert min(count for what, count, _ in said if what == DECODING) > killed
    undisturbed, _ = read(files(root), tmp_path / "other")
    (one,), (other,) = arrays(tmp_path / "cache"), arrays(tmp_path / "other")
    for path in files(other):
        assert (one / path.name).read_bytes() == path.read_bytes()
    assert np.array_equal(pixels(result), pixels(undisturbed))


def test_what_a_killed_process_left_is_copied_by_a_set_that_grew_and_then_makes_room(killed, tmp_path):
    root = fill(tmp_path / "set", [1000])
    result, said = read(files(root), tmp_path / "cache", 400 * ROW)
    # Copies come first, so that the count passes over the number of rows that were done.
    assert killed in [count for what, count, _ in said if what == DECODING]
    assert [path.suffix for path in arrays(tmp_path / "cache")] == [""]
    for path, image in zip(files(root), pixels(result), strict=True):
        assert np.array_equal(image, decode(path, HOW))


def test_of_two_processes_one_decodes_and_the_other_waits(tmp_path):
    root = fill(tmp_path / "set", range(100))
    with slow_readers(root, tmp_path / "cache", 2) as processes:
        said = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(DECODING in lines for lines in said) == [False, True]
    assert sorted(WAITING in lines for lines in said) == [False, True]
    assert len(arrays(tmp_path / "cache")) == 1


def test_what_others_are_building_stays_and_the_set_is_streamed(root, tmp_path):
    fill(tmp_path / "large", range(1000, 1100))
    read(files(root), tmp_path / "cache")
    small = files(fill(tmp_path / "small", range(100, 110)))
    with slow_readers(tmp_path / "large", tmp_path / "cache") as (process,):
        wait_for(lambda: len(arrays(tmp_path / "cache")) == 2, process)
        before = arrays(tmp_path / "cache")
        result, _ = read(small, tmp_path / "cache", 105 * ROW)
        assert result.array is None
        assert not result.reasons
        process.communicate(timeout=300)
    assert [path.stem for path in arrays(tmp_path / "cache")] == [path.stem for path in before]


@contextmanager
def small_disk(folder):
    """A disk of 1 MB at ``folder``."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def small_files(folder):
    """No file may have more than 1 MB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("no_room", [small_disk, small_files])
def test_a_full_disk_is_one_message_and_leaves_nothing_behind(root, tmp_path, no_room):
    cache = tmp_path / "cache"
    with no_room(cache):
        with pytest.raises(DataError) as caught:
            read(files(root), cache, how=Preprocessing(224))
        message = str(caught.value)
        assert f"data.cache={cache} has no room" in message
        assert f"{24 * 3 * 224 * 224:,} bytes are needed" in message
        assert " are free" in message
        assert "data.cache_gib" in message
        assert arrays(cache) == []
        streamed, _ = read(files(root), cache, 0, how=Preprocessing(224))
        assert not streamed.reasons


def test_a_disk_that_fills_up_half_way_is_the_same_message(tmp_path):
    """As where another program writes too, on a file system that cannot reserve space."""
    with small_files(tmp_path / "cache"), pytest.raises(DataError, match="has no room"):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def decoded(position):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4 * ROW, limits[1]))
            return decode(noise(position), HOW)

        PixelCache(tmp_path / "cache", GIB).open(
            [content_digests(bytes([k])).content for k in range(24)], HOW, decoded, lambda *call: None
        )
    assert arrays(tmp_path / "cache") == []


def test_a_cache_that_is_a_file_is_named(root, tmp_path, caplog):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=f"data.cache={tmp_path}/cache cannot be used: .*Not a directory"):
        read(files(root), tmp_path / "cache")


def truncated(array):
    os.truncate(array / "pixels.npy", 1000)


def lengthened(array):
    with (array / "pixels.npy").open("ab") as file:
        file.write(b"x")


def without_pixels(array):
    (array / "pixels.npy").unlink()


def without_reasons(array):
    (array / "reasons.json").unlink()


def nonsense_as_reasons(array):
    (array / "reasons.json").write_text('["x"')


def other_contents(array):
    (array / "contents").write_bytes(random.Random(0).randbytes(24 * 16))


def undone(array):
    (array / "checks").write_bytes(bytes(4 * 24))


@pytest.mark.parametrize(
    "damage",
    [truncated, lengthened, without_pixels, without_reasons, nonsense_as_reasons, other_contents, undone],
)
def test_a_damaged_array_is_made_anew(root, tmp_path, damage, caplog):
    first, _ = read(files(root), tmp_path / "cache")
    kept = pixels(first).copy()
    (array,) = arrays(tmp_path / "cache")
    damage(array)
    again, said = read(files(root), tmp_path / "cache")
    assert np.array_equal(pixels(again), kept)
    assert said[-1] == (DECODING, 24, 24)
    assert f"{array} is damaged and is made anew" in caplog.text
    assert read(files(root), tmp_path / "cache")[1] == []


def no_database(path):
    path.write_bytes(random.Random(0).randbytes(5000))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def scratched(path):
    """Nonsense in all pages but the first, which says what tables there are."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def other_tables(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE checked_files (name TEXT)")
        connection.commit()


@pytest.mark.parametrize("damage", [no_database, cut, scratched, other_tables])
def test_a_damaged_index_is_replaced(root, tmp_path, damage, caplog):
    first, _ = read(files(root), tmp_path / "cache")
    damage(tmp_path / "cache" / "files.sqlite")
    again, said = read(files(root), tmp_path / "cache")
    assert "files.sqlite is damaged" in caplog.text
    assert "is made anew" in caplog.text
    assert again.samples == first.samples
    assert said[-1] == (READING, 24, 24)
    assert read(files(root), tmp_path / "cache")[1] == []


def test_without_an_index_files_are_read_each_time(root, tmp_path, caplog):
    (tmp_path / "cache" / "files.sqlite").mkdir(parents=True)
    first, _ = read(files(root), tmp_path / "cache")
    again, said = read(files(root), tmp_path / "cache")
    assert again.contents == first.contents
    assert "files.sqlite cannot be used" in caplog.text
    assert {what for what, *_ in said} == {READING}


# Digests and the index


@given(st.integers(0, 3).flatmap(lambda k: st.integers(max(1, k * 2**15 - 2), k * 2**15 + 2 * 2**12 + 2)), st.data())
def test_a_file_and_its_content_have_one_sample_wherever_it_is_read_from(tmp_path_factory, size, data):
    folder = tmp_path_factory.mktemp("digests")
    content = random.Random(size).randbytes(size)
    (folder / "file").write_bytes(content)
    (folder / "archive").write_bytes(b"before" + content + b"behind")
    expected = content_digests(content)
    for image in (folder / "file", Part(folder / "archive", 6, size)):
        stamp = take_stamps([image])[0]
        assert digests_of(image, stamp, whole=True) == expected
        assert digests_of(image, stamp, whole=False).sample == expected.sample
    place = data.draw(st.integers(0, size - 1))
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    assert content_digests(changed).content != expected.content
    if size <= 2**16 or place < 2**12 or place >= size - 2**12:
        assert content_digests(changed).sample != expected.sample


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_that_differ_in_a_pixel_or_in_their_palette_have_other_digests(mode):
    seen = {content_digests(np.zeros((4, 4), np.uint8)).content, content_digests(np.zeros((2, 8), np.uint8)).content}
    picture = Image.new("RGB", (4, 4)).convert("L").convert(mode) if mode != "I;16" else Image.new(mode, (4, 4))
    seen.add(content_digests(picture).content)
    other = picture.copy()
    other.putpixel((1, 1), 1 if len(picture.getbands()) == 1 else (1,) * len(picture.getbands()))
    seen.add(content_digests(other).content)
    assert content_digests(picture.copy()).content in seen
    assert len(seen) == 4
    if mode == "P":
        other = picture.copy()
        other.putpalette([9, 8, 7] * 256)
        seen.add(content_digests(other).content)
        assert len(seen) == 5


def test_names_that_are_no_text_are_found_again(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\n\x01.png")
    noise(1).save(path, "PNG")
    reconcile_runs(path)
    first, _ = read([path], tmp_path / "cache")
    again, said = read([path], tmp_path / "cache")
    assert again.samples == first.samples
    assert said == []


def test_parts_of_an_archive_are_read_again_once_it_has_changed(tmp_path):
    encoded = [path.read_bytes() for path in files(fill(tmp_path / "set", range(3), "bmp"))]
    archive = tmp_path / "all.tar"
    archive.write_bytes(b"".join(encoded))
    reconcile_runs(archive)
    size = len(encoded[0])
    parts = [Part(archive, k * size, size) for k in range(3)]
    first, _ = read(parts, tmp_path / "cache")
    assert read(parts, tmp_path / "cache")[1] == []
    archive.write_bytes(b"".join([encoded[1], encoded[0], encoded[2]]))
    reconcile_runs(archive, LONG_AGO + 1)
    again, _ = read(parts, tmp_path / "cache")
    assert list(again.contents) == [first.contents[k] for k in (1, 0, 2)]


def test_the_index_keeps_what_the_last_one_said(tmp_path):
    stamps = [Stamp(f"/{k}".encode(), k, k, True) for k in range(3000)]
    digests = [Digests(k.to_bytes(16, "big"), None if k % 2 else k.to_bytes(16, "little")) for k in range(3000)]
    with closing(FileIndex(tmp_path / "files.sqlite")) as index:
        index.save_digests(zip(stamps, digests, strict=True))
        index.save_verdicts("one", {digests[0].sample: "bad", digests[1].sample: ""})
    with closing(FileIndex(tmp_path / "files.sqlite")) as index:
        assert index.digests([*stamps, None, Stamp(b"/5", 5, 6, True)]) == [*digests, None, None]
        samples = [one.sample for one in digests]
        assert index.verdicts("one", samples) == {samples[0]: "bad", samples[1]: ""}
        assert index.verdicts("two", samples) == {}


OPENED: list[str] = []


@pytest.mark.slow
def test_thousands_of_images_are_opened_once_and_their_fingerprint_survives_a_copy(tmp_path):
    root = tmp_path / "set"
    # Every file another picture: a bitmap of 8 x 8 pixels, of which the numbers 0 to 1,999 are the first ones.
    noise(0, 8).save(tmp_path / "one.bmp")
    whole = (tmp_path / "one.bmp").read_bytes()
    for k in range(2_000):
        path = root / f"class{k % 10}" / f"image{k}.bmp"
        if k < 10:
            path.parent.mkdir(parents=True)
        path.write_bytes(whole[:54] + k.to_bytes(4, "big") + whole[58:])
        reconcile_runs(path)
    first = opened(root, tmp_path / "cache")
    assert [len(split) for split in (first.train, first.val, first.test)] == [1_000, 500, 500]
    if not OPENED:
        sys.addaudithook(lambda event, about: OPENED.append(str(about[0])) if event == "open" else None)
    OPENED.clear()
    began = time.perf_counter()
    second = opened(root, tmp_path / "cache")
    print(f"second opening: {time.perf_counter() - began:.1f} s")
    # The index and the array were opened, so that the count can be trusted.
    assert any(name.endswith("pixels.npy") for name in OPENED)
    assert [name for name in OPENED if name.endswith(".bmp")] == []
    assert second.fingerprint == first.fingerprint
    # Links, since writing 2,000 files once more takes longer than all else here; to the cache they are new files.
    shutil.copytree(root, tmp_path / "copy", copy_function=os.link)
    said = []
    copy = opened(tmp_path / "copy", tmp_path / "cache", progress=lambda *call: said.append(call))
    assert copy.fingerprint == first.fingerprint
    assert {what for what, *_ in said} == {READING}
    assert said[-1][1:] == (2_000, 2_000)
    images, targets = next(first.train.batches(torch.arange(1000), 1000, CPU))
    same_images, same_targets = next(copy.train.batches(torch.arange(1000), 1000, CPU))
    assert torch.equal(images, same_images)
    assert torch.equal(targets, same_targets)
    assert len(images.unique(dim=0)) > 900
