"""Images per second: opening a data set, epochs from the cache and streamed, beside torchvision's ImageFolder.

Every way reads the same JPEG files in the same run, and the ways take turns, so that a busy moment hits all of them.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from trainers.data import ImageData, open_data

BATCH_SIZE = 64
CLASSES = 10
# So many images a class in val and in test; an epoch is one of train.
ASIDE = 1
IMAGE_FOLDER = "torchvision ImageFolder + DataLoader"
CPU = torch.device("cpu")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="unfreeze-data-") as folder:
        root = Path(folder) / "images"
        write_images(root, options.images, options.side)
        size = sum(path.stat().st_size for path in root.rglob("*.jpg")) / options.images / 1000
        result = {
            "images": options.images,
            "side": "x".join(map(str, options.side)),
            "kilobytes_an_image": round(size, 1),
            "image_size": options.image_size,
            "workers": options.workers,
            "repeats": options.repeats,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "pillow": PIL.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "ways": measured(root, Path(folder) / "caches", options),
        }
    show(result)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="how many JPEG files to write")
    parser.add_argument("--side", type=sides, default=(500, 375), help="their width and height, such as 500x375")
    parser.add_argument("--image-size", type=int, default=224, help="side of the decoded images")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, ours and the DataLoader's")
    parser.add_argument("--repeats", type=int, default=3, help="how often each way is measured; the median counts")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


def sides(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


def write_images(root: Path, count: int, side: tuple[int, int]) -> None:
    """Crops of scikit-learn's two photographs, each of another place, size and brightness."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    random = np.random.default_rng(0)
    long_ago = time.time() - 3600
    for k in range(count):
        photograph = photographs[k % 2]
        share = random.uniform(0.5, 1.0)
        width, height = round(photograph.width * share), round(photograph.height * share)
        left, top = random.integers(photograph.width - width + 1), random.integers(photograph.height - height + 1)
        image = photograph.resize(side, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.7, 1.3))
        number = k // CLASSES
        split = {0: "val", 1: "test"}.get(number // ASIDE, "train")
        path = root / split / f"class{k % CLASSES}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
        os.utime(path, (long_ago, long_ago))


def measured(root: Path, caches: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds and images per second of each way, the median of the repeats."""

    def opened(cache: Path, cache_gib: float = 100.0) -> ImageData:
        return open_set(root, cache, cache_gib, options.image_size, options.workers)

    reference = image_folder(root / "train", options.image_size, options.workers)
    streamed = opened(caches / "streamed", 0.0)
    cached = opened(caches / "0")
    fresh = (caches / f"first {number}" for number in range(options.repeats))
    in_train = len(cached.train)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "first opening: checked, decoded, stored": (options.images, lambda: opened(next(fresh))),
        "second opening": (options.images, lambda: opened(caches / "0")),
        "epoch from the cache": (in_train, lambda: epoch(cached)),
        "epoch streamed": (in_train, lambda: epoch(streamed)),
        IMAGE_FOLDER: (in_train, lambda: sum(len(images) for images, _ in reference)),
    }
    # Worker processes start in the first pass, ours and the DataLoader's; they stay for the others.
    epoch(streamed)
    epoch(cached)
    ways[IMAGE_FOLDER][1]()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, (_, work) in ways.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    found = {}
    for name, (images, _) in ways.items():
        median = statistics.median(seconds[name])
        found[name] = {"images": images, "seconds": seconds[name], "images_per_second": images / median}
    return found


def open_set(root: Path, cache: Path, cache_gib: float, image_size: int, workers: int) -> ImageData:
    unset = ("dataset", "manifest", "annotations", "shards", "columns", "max_value", "folds")
    limits = ("limit_train", "limit_val", "limit_test")
    return open_data(
        **dict.fromkeys((*unset, *limits)),
        task="classification",
        source="folder",
        root=str(root),
        image_size=image_size,
        in_chans=3,
        val_fraction=0.1,
        test_fraction=0.1,
        split_seed=0,
        fold=0,
        on_bad_image="refuse",
        on_duplicates="report",
        cache=str(cache),
        cache_gib=cache_gib,
        workers=workers,
    )


def image_folder(root: Path, image_size: int, workers: int) -> "DataLoader[Any]":
    transform = Compose([Resize(image_size, InterpolationMode.BICUBIC), CenterCrop(image_size), PILToTensor()])
    return DataLoader(
        ImageFolder(str(root), transform),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def epoch(data: ImageData) -> int:
    order = torch.randperm(len(data.train))
    return sum(len(images) for images, _ in data.train.batches(order, BATCH_SIZE, CPU))


def show(result: dict[str, Any]) -> None:
    title = "{images:,} JPEG files of {side} ({kilobytes_an_image} kB), to {image_size} px".format(**result)
    table = Table(title=title, caption="{cores} cores, {workers} workers, median of {repeats}".format(**result))
    table.add_column("way")
    for name in ("seconds", "images/s", "x ImageFolder"):
        table.add_column(name, justify="right")
    ways = result["ways"]
    base = ways[IMAGE_FOLDER]["images_per_second"]
    for name, way in ways.items():
        speed = way["images_per_second"]
        table.add_row(name, f"{way['images'] / speed:.2f}", f"{speed:,.0f}", f"{speed / base:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
