"""What each possible cut of a model costs to store, and what reading it spares.

``python -m benchmarks.cache`` cuts EfficientNet-Lite0 (packaged weights) in front of every block and stores what the
prefix gives for 2,000 Fashion-MNIST images at 64 px. The images come from Debian's package dataset-fashion-mnist.

A depth is the number of blocks that a trial trains on what is stored. Rows are read in random order, in batches as in
training: first after the system was told to forget the file, with the checks of its blocks that each process makes
once, then again from memory, and then once more from memory with the checks. Writing ends when the file is safe on the
disk. The nearest cut is that of one block less, read from memory.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from benchmarks.search_speed import FULL, QUICK, Scale
from search.config import DataConfig
from strategies import Strategy, make_plan
from trainers import ActivationStore, ModelSource, choose_device, find_weights, normaliser, open_data
from trainers.reuse import Activations, BlockGraph, Cut, CutError, Rows, Setting, cut_at, deepen, trace_blocks

BATCH, TOGETHER = 64, 256


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="unfreeze-cache-", dir=options.folder) as folder:
        setting = open_setting(scale, options, Path(folder))
        with torch.no_grad(), setting.device.autocast():
            cuts, left_out = measured(setting, Path(folder))
        result = {
            "machine": machine(),
            "device": setting.device.description,
            "model": scale.model,
            "images": len(setting.data.train),
            "image_size": setting.size,
            "cuts": cuts,
            "left_out": left_out,
        }
    show(result)
    write_json(result, options.json)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="how many; 2,000 unless --quick")
    parser.add_argument("--image-size", type=int, help="height and width in pixels; 64 unless --quick")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; a GPU computes in bf16")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; the system's for temporary files if left out"
    )
    parser.add_argument("--quick", action="store_true", help="a small model and a few digits, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args(arguments)


def open_setting(scale: Scale, options: argparse.Namespace, folder: Path) -> Setting:
    """Images and model, in which all blocks are as a linear probe has them."""
    changes = {"limit_train": options.images, "image_size": options.image_size, "cache": str(folder / "pixels")}
    how = DataConfig(**scale.data | {key: value for key, value in changes.items() if value is not None})
    data = open_data(task="classification", in_chans=3, **how.model_dump())
    device = choose_device(options.device)
    weights = find_weights(scale.model, [scale.weights])
    source = ModelSource(scale.model, weights, len(data.classes), how.image_size)
    strategy = Strategy(depth=0).canonical(source.num_blocks)
    model = source.build(0).to(device.torch)
    model.to(memory_format=torch.channels_last)
    normalise = normaliser(source.mean, source.std, device)
    return Setting(source, model, make_plan(model, strategy), strategy, 0, data, normalise, device)


def measured(setting: Setting, folder: Path) -> tuple[list[dict[str, float]], dict[int, str]]:
    """What each cut takes, the shallowest first; and the depths at which there is none, with the reason."""
    graph = trace_blocks(setting.model, (setting.source.in_chans, setting.size, setting.size))
    cuts: list[dict[str, float]] = []
    left_out: dict[int, str] = {}
    nearest: tuple[Cut, Activations] | None = None
    for k in range(1, graph.num_blocks + 1):
        depth = graph.num_blocks - k
        try:
            cut = cut_at(graph, setting.model, k)
        except CutError as error:
            left_out[depth] = str(error)
            continue
        found, rows = measured_cut(setting, graph, cut, nearest, folder)
        nearest = cut, rows
        cuts.append({"depth": depth, **found})
    return cuts, left_out


def measured_cut(
    setting: Setting, graph: BlockGraph, cut: Cut, nearest: tuple[Cut, Activations] | None, folder: Path
) -> tuple[dict[str, float], Activations]:
    """Bytes and seconds of one cut, and its stored rows."""
    images, model = len(setting.data.train), setting.model
    order = torch.arange(images)
    from_images: list[Rows] = []

    def compute() -> None:
        from_images.extend(cut.prefix(model, batch) for batch in setting.inputs(setting.data.train, order, TOGETHER))

    compute_seconds = seconds(compute, setting)
    store = ActivationStore(folder, 2**60)
    content = setting.content(cut, "train", "benchmark")
    write_seconds = seconds(lambda: store.build(content, cut.rows, images, lambda: from_images), setting)
    (entry,) = {path for path in (folder / "activations").iterdir() if content.key in path.name}
    forget(entry)
    # Another store maps the file anew; on a GPU it also takes the rows there, as a first trial does.
    other, third = ActivationStore(folder, 2**60), ActivationStore(folder, 2**60)

    def find(store: ActivationStore) -> Activations:
        rows = store.find(content, cut.rows, images)
        assert rows is not None, "it has just been stored"
        return rows

    first_seconds, again_seconds, checked_seconds = (
        seconds(lambda store=store: read(find(store), setting), setting) for store in (other, other, third)
    )
    found = {
        "bytes_an_image": cut.row_bytes,
        "bytes": entry.stat().st_size,
        "seconds_from_images": compute_seconds,
        "seconds_to_write": write_seconds,
        "seconds_to_read_first": first_seconds,
        "seconds_to_read_again": again_seconds,
        "seconds_to_read_checked": checked_seconds,
        "recompute_over_read": compute_seconds / again_seconds,
    }
    step = deepen(graph, model, nearest[0], cut) if nearest is not None else None
    if step is not None and nearest is not None:
        shallower = nearest[1]

        def go_on() -> None:
            for part in shallower.batches(order, TOGETHER, setting.device.torch):
                step(model, part)

        found["seconds_from_nearest"] = seconds(go_on, setting)
    return found, find(other)


def read(rows: Activations, setting: Setting) -> None:
    """One pass as a trial makes it, in random order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    for _ in rows.batches(order, BATCH, setting.device.torch):
        pass


def forget(path: Path) -> None:
    """Ask the system to drop what it holds of a file in memory, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def seconds(work: Callable[[], object], setting: Setting) -> float:
    """How long it takes until the device is done."""
    began = time.perf_counter()
    work()
    if setting.device.torch.type == "cuda":
        torch.cuda.synchronize(setting.device.torch)
    return time.perf_counter() - began


def show(result: dict[str, Any]) -> None:
    table = Table(
        title="{model}, {images:,} images at {image_size} px".format(**result),
        caption="{device}; seconds for all images; ratio: from images to reading again".format(**result),
    )
    columns = (
        "depth",
        "kB an image",
        "MiB",
        "from images",
        "from nearest",
        "write",
        "read",
        "again",
        "checked",
        "ratio",
    )
    for name in columns:
        table.add_column(name, justify="right")
    for cut in result["cuts"]:
        before = cut.get("seconds_from_nearest")
        table.add_row(
            str(cut["depth"]),
            f"{cut['bytes_an_image'] / 1000:.1f}",
            f"{cut['bytes'] / 2**20:.1f}",
            f"{cut['seconds_from_images']:.2f}",
            "" if before is None else f"{before:.2f}",
            *(f"{cut[f'seconds_to_{name}']:.3f}" for name in ("write", "read_first", "read_again", "read_checked")),
            f"{cut['recompute_over_read']:.0f}",
        )
    Console().print(table)
    for depth, reason in result["left_out"].items():
        print(f"depth {depth} is left out: {reason}")


if __name__ == "__main__":
    main()
