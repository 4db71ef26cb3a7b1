"""The cache of prefix outputs: what is computed once, and what no accident spoils."""

import os
import resource
import select
import signal
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from copies import copies
from safetensors.torch import load_file, save_file
from torch import nn

from trainers.reuse import Activations, ActivationStore
from trainers.reuse.rows import RowLayout
from trainers.reuse.store import Content, NoRoomError, weights_digest

CPU = torch.device("cpu")
GIB = 2**30
CONTENT = Content("w", "test_resnet", 3, 64, "2: layer1", "f", "train", "plain", 0, "cpu fp32")
# The folders' own share of a bound: each file begins with a page.
PAGE = 4096


def layout(*shape: int, dtype: torch.dtype = torch.float32) -> RowLayout:
    return RowLayout(shape, dtype, 0, 1, tuple(range(len(shape) + 1)))


LAYOUTS = (layout(3, 5), layout(2, dtype=torch.bfloat16), layout(dtype=torch.int64), layout(4, dtype=torch.bool))


def whole(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 5, generator=generator)
    return noise, noise[:, 0, :2].bfloat16(), torch.arange(count), noise[:, 1, :4] > 0


def computed(count: int, seed: int = 0):
    return lambda: zip(*(tensor.split(7) for tensor in whole(count, seed)), strict=True)


def never():
    raise AssertionError("was computed again")


def read(activations: Activations) -> tuple[torch.Tensor, ...]:
    batches = list(activations.batches(torch.arange(len(activations)), 4, CPU))
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def numbers(cache: Path, seed: int, count: int = 256, bound: int = GIB) -> Activations:
    """An entry of ``count`` KiB that differs by its seed."""
    content = replace(CONTENT, weights=str(seed))
    rows = torch.full((count, 256), float(seed))
    return ActivationStore(cache, bound).build(content, [layout(256)], count, lambda: [(rows,)])


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "activations").iterdir())


# What is stored and found


def test_rows_of_every_type_come_back_as_they_were(tmp_path):
    store = ActivationStore(tmp_path, GIB)
    assert store.find(CONTENT, LAYOUTS, 20) is None
    built = store.build(CONTENT, LAYOUTS, 20, computed(20))
    assert equal(read(built), whole(20))
    again = ActivationStore(tmp_path, GIB)
    assert equal(read(again.build(CONTENT, LAYOUTS, 20, never)), whole(20))
    found = again.find(CONTENT, LAYOUTS, 20)
    assert found is not None
    assert equal(read(found), whole(20))


def test_tensors_of_odd_sizes_lie_side_by_side(tmp_path):
    layouts = (layout(3, dtype=torch.bool), layout(dtype=torch.bfloat16), layout(1), layout(dtype=torch.int64))
    rows = (torch.ones(5, 3).bool(), torch.arange(5).bfloat16(), torch.rand(5, 1), torch.arange(5))
    built = ActivationStore(tmp_path, GIB).build(CONTENT, layouts, 5, lambda: [rows])
    assert equal(read(built), rows)
    assert equal([load_file(entries(tmp_path)[0])[str(k)] for k in range(4)], rows)


def test_trials_of_a_process_share_an_entry_for_as_long_as_it_is_there(tmp_path):
    store = ActivationStore(tmp_path, GIB)
    built = store.build(CONTENT, LAYOUTS, 20, computed(20))
    assert store.find(CONTENT, LAYOUTS, 20) is built
    entries(tmp_path)[0].unlink()
    assert store.find(CONTENT, LAYOUTS, 20) is None
    assert equal(read(store.build(CONTENT, LAYOUTS, 20, computed(20, seed=1))), whole(20, seed=1))


def test_rows_are_read_in_any_order_and_may_be_written_to(tmp_path):
    built = ActivationStore(tmp_path, GIB).build(CONTENT, LAYOUTS, 20, computed(20))
    order = torch.tensor([19, 0, 0, 7, 3])
    first, second = built.batches(order, 3, CPU)
    assert equal(first, tuple(tensor[order[:3]] for tensor in whole(20)))
    assert equal(second, tuple(tensor[order[3:]] for tensor in whole(20)))
    first[0].zero_()
    assert equal(read(built), whole(20))
    assert list(built.batches(order[:0], 3, CPU)) == []
    for wrong in (-1, 20):
        with pytest.raises(IndexError, match=f"{wrong}.* of 20"):
            built.batches(torch.tensor([wrong]), 3, CPU)


def test_an_entry_is_a_file_that_the_formats_own_library_reads(tmp_path):
    ActivationStore(tmp_path, GIB).build(CONTENT, LAYOUTS, 20, computed(20))
    (path,) = entries(tmp_path)
    loaded = load_file(path)
    assert equal([loaded[str(k)] for k in range(4)], whole(20))


def test_an_entry_is_another_one_when_anything_that_it_depends_on_is():
    keys = {CONTENT.key}
    for field in fields(Content):
        value = getattr(CONTENT, field.name)
        keys.add(replace(CONTENT, **{field.name: value + 1 if isinstance(value, int) else f"{value}x"}).key)
    assert len(keys) == 1 + len(fields(Content))
    assert replace(CONTENT).key == CONTENT.key


def test_a_digest_tells_every_weight_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    names = [name for name in model.state_dict() if not name.startswith("2.")]
    seen = [weights_digest(model, names)]
    assert weights_digest(model.to(memory_format=torch.channels_last), reversed(names)) == seen[0]
    with torch.no_grad():
        model[2].weight.zero_()
        assert weights_digest(model, names) == seen[0]
        model[1].running_var[3] += 1e-6
        seen.append(weights_digest(model, names))
        model[0].weight[0, 0, 0, 0] += 1e-6
        seen.append(weights_digest(model, names))
    seen.append(weights_digest(model, names[1:]))
    seen.append(weights_digest(model.double(), names))
    assert len(set(seen)) == 5


def test_digests_of_single_tensors_that_are_known_are_not_made_again():
    model, known = nn.Linear(3, 2), {}
    whole_model = weights_digest(model, ["weight", "bias"], known)
    assert known.keys() == {"weight", "bias"}
    with torch.no_grad():
        model.bias.add_(1)
    assert weights_digest(model, ["weight", "bias"], known) == whole_model
    assert weights_digest(model, ["weight", "bias"]) != whole_model
    assert weights_digest(model, ["weight"]) == weights_digest(model, ["weight"], known) != whole_model


def test_on_a_device_stays_what_was_used_last(tmp_path):
    store = ActivationStore(tmp_path, GIB)
    entries = [
        store.build(replace(CONTENT, view=view), LAYOUTS[:1], 20, lambda: (rows[:1] for rows in computed(20)()))
        for view in range(3)
    ]
    for rows in entries:
        # As on a GPU; a CPU reads what is mapped.
        rows._kept[CPU] = rows._tensors
    store.find(replace(CONTENT, view=0), LAYOUTS[:1], 20)
    store.release(CPU, 2 * entries[0].bytes)
    assert [rows.bytes_on(CPU) for rows in entries] == [entries[0].bytes, 0, entries[0].bytes]
    store.release(CPU, 0)
    assert not any(rows.bytes_on(CPU) for rows in entries)


@pytest.mark.parametrize("count", [19, 21])
def test_rows_for_another_number_of_images_are_refused_and_leave_nothing(tmp_path, count):
    with pytest.raises(ValueError, match="rows were computed"):
        ActivationStore(tmp_path, GIB).build(CONTENT, LAYOUTS, 20, computed(count))
    assert entries(tmp_path) == []


def test_rows_of_another_layout_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="are not laid out as"):
        ActivationStore(tmp_path, GIB).build(CONTENT, [layout(3, 4)], 2, lambda: [(torch.zeros(2, 3, 5),)])
    assert entries(tmp_path) == []


# The bound


def test_entries_not_used_for_longest_make_room(tmp_path):
    bound = 2 * (256 * 1024 + PAGE)
    for seed in (0, 1, 0, 2):
        numbers(tmp_path, seed, bound=bound)
        time.sleep(0.02)
        assert sum(path.stat().st_size for path in entries(tmp_path)) <= bound
    store = ActivationStore(tmp_path, bound)
    found = [store.find(replace(CONTENT, weights=str(seed)), [layout(256)], 256) for seed in (0, 1, 2)]
    assert [entry is not None for entry in found] == [True, False, True]


def test_an_entry_above_the_bound_is_refused_and_removes_nothing(tmp_path):
    numbers(tmp_path, 0)
    before = entries(tmp_path)
    with pytest.raises(NoRoomError, match="bounded to 300,000 bytes"):
        numbers(tmp_path, 1, count=512, bound=300_000)
    assert entries(tmp_path) == before
    store = ActivationStore(tmp_path, 300_000)
    assert [store.room_for(size) for size in (300_000, 300_001)] == [True, False]


def test_an_entry_that_was_removed_can_still_be_used(tmp_path):
    built = numbers(tmp_path, 3)
    entries(tmp_path)[0].unlink()
    assert torch.equal(read(built)[0], torch.full((256, 256), 3.0))


# Accidents

SLOWLY = """
import sys, time
from pathlib import Path
import torch
from trainers.reuse import Activations, ActivationStore
from trainers.reuse.rows import RowLayout
from trainers.reuse.store import Content

def batches():
    print("computing", flush=True)
    for k in range(50):
        time.sleep(0.02)
        yield (torch.full((4, 256), float(k)),)

content = Content("w", "test_resnet", 3, 64, "2: layer1", "f", "train", "plain", 0, "cpu fp32")
store = ActivationStore(Path(sys.argv[1]), 2**30)
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
entry = store.build(content, [RowLayout((256,), torch.float32, 0, 1, (0, 1))], 200, batches)
(rows,) = next(entry.batches(torch.arange(200), 200, torch.device("cpu")))
print("sum", float(rows.sum()), flush=True)
"""
SLOW_SUM = f"sum {float(4 * 256 * sum(range(50)))}"


def slow_rows():
    return [(torch.full((4, 256), float(k)),) for k in range(50)]


@contextmanager
def slow_builders(cache, count):
    """Processes that build the same entry, in one second, and that begin together."""
    begin = cache / "begin"
    processes = [copies().start(SLOWLY, [str(cache), str(begin)], cache, os.environ) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        begin.touch()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path):
    with slow_builders(tmp_path, 2) as processes:
        said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(said) == [["computing", SLOW_SUM], [SLOW_SUM]]
    assert [path.suffix for path in entries(tmp_path)] == [".safetensors"]


def test_when_the_one_that_computes_is_killed_the_other_computes_anew(tmp_path):
    with slow_builders(tmp_path, 2) as processes:
        speaking, _, _ = select.select([process.stdout for process in processes], [], [])
        (first,) = [process for process in processes if process.stdout in speaking]
        assert first.stdout.readline() == "computing\n"
        first.send_signal(signal.SIGKILL)
        (other,) = [process for process in processes if process is not first]
        assert other.communicate(timeout=60)[0].splitlines() == ["computing", SLOW_SUM]
    assert [path.suffix for path in entries(tmp_path)] == [".safetensors"]
    store = ActivationStore(tmp_path, GIB)
    assert torch.equal(read(store.build(CONTENT, [layout(256)], 200, never))[0], torch.cat([r for (r,) in slow_rows()]))


@pytest.fixture
def left_over(tmp_path):
    """The part of an entry whose builder was killed."""
    with slow_builders(tmp_path, 1) as (process,):
        while not list(tmp_path.glob("activations/*.part")):
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (part,) = entries(tmp_path)
    assert part.suffix == ".part"
    return part


def test_what_a_killed_process_left_is_not_used(tmp_path, left_over):
    store = ActivationStore(tmp_path, GIB)
    assert store.find(CONTENT, [layout(256)], 200) is None
    rows = torch.ones(200, 256)
    assert torch.equal(read(store.build(CONTENT, [layout(256)], 200, lambda: [(rows,)]))[0], rows)
    assert [path.suffix for path in entries(tmp_path)] == [".safetensors"]


def test_what_a_killed_process_left_is_the_first_to_make_room(tmp_path, left_over):
    bound = 2 * (256 * 1024 + PAGE)
    numbers(tmp_path, 0, bound=bound)
    assert left_over.exists()
    numbers(tmp_path, 1, bound=bound)
    assert not left_over.exists()
    assert len(entries(tmp_path)) == 2


def test_what_others_are_building_stays(tmp_path):
    with slow_builders(tmp_path, 1) as (process,):
        while not list(tmp_path.glob("activations/*.part")):
            time.sleep(0.01)
        with pytest.raises(NoRoomError, match="bounded to"):
            numbers(tmp_path, 0, bound=256 * 1024 + PAGE)
        assert process.communicate(timeout=60)[0].splitlines() == ["computing", SLOW_SUM]


def test_an_error_or_an_interrupt_while_computing_leaves_nothing(tmp_path):
    for error in (ZeroDivisionError, KeyboardInterrupt):

        def batches(error=error):
            yield tuple(tensor[:7] for tensor in whole(20))
            raise error

        with pytest.raises(error):
            ActivationStore(tmp_path, GIB).build(CONTENT, LAYOUTS, 20, batches)
        assert entries(tmp_path) == []
    assert equal(read(ActivationStore(tmp_path, GIB).build(CONTENT, LAYOUTS, 20, computed(20))), whole(20))


@contextmanager
def small_files():
    """No file may have more than 100 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_message_and_leaves_nothing_behind(tmp_path):
    with (
        small_files(),
        pytest.raises(NoRoomError, match=r"no room for the activation cache .* 262,144 bytes are needed"),
    ):
        numbers(tmp_path, 0)
    assert entries(tmp_path) == []
    numbers(tmp_path, 0)


def test_a_disk_that_fills_up_half_way_is_the_same_message(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def batches():
        yield (torch.zeros(128, 256),)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        yield (torch.zeros(128, 256),)

    with pytest.raises(NoRoomError, match="has no room"):
        try:
            ActivationStore(tmp_path, GIB).build(CONTENT, [layout(256)], 256, batches)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(tmp_path) == []


def test_a_cache_that_is_a_file_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    store = ActivationStore(tmp_path / "cache", GIB)
    assert store.find(CONTENT, LAYOUTS, 20) is None
    assert not store.room_for(1)
    with pytest.raises(NoRoomError, match=f"{tmp_path}/cache/activations cannot be used"):
        store.build(CONTENT, LAYOUTS, 20, computed(20))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 5000),
        lambda path: save_file({"0": torch.zeros(3)}, path),
        lambda path: save_file({"other": torch.zeros(20, 3, 5)}, path),
    ],
)
def test_a_damaged_entry_is_made_anew(tmp_path, damage, caplog):
    store = ActivationStore(tmp_path, GIB)
    store.build(CONTENT, LAYOUTS, 20, computed(20))
    damage(entries(tmp_path)[0])
    assert store.find(CONTENT, LAYOUTS, 20) is None
    assert equal(read(store.build(CONTENT, LAYOUTS, 20, computed(20))), whole(20))
    assert "is damaged and is made anew" in caplog.text
