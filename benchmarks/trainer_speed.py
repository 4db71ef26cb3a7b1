"""Images per second of one trial: our trainer beside the bare loop, timm's loop and fastai's.

``python -m benchmarks.trainer_speed`` trains all blocks of a model with every loop: same architecture, batches,
precision and number of steps; the loops take turns, so that a busy moment hits all of them, and the median counts. The
first epoch of each is not measured. An epoch of ours and of fastai's ends with a validation of ten images, since
neither trains without one.

On a CPU a trial computes some gradients otherwise than torch does (:mod:`trainers.models.small_maps`), and beats the
bare loop by that; a bare loop with the same gradients tells what all else costs.

The matrix peak is what the device reaches, in this run and precision, in products of large matrices; the operations of
a training step's matrix products and convolutions are held against it.
"""

import argparse
import gzip
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.loops import (
    CLASSES,
    LR,
    Epoch,
    Setting,
    bare,
    image_flops,
    matrix_peak,
    ours,
    seconds_of,
    timm_loop,
)
from benchmarks.machine import machine, write_json
from search.config import DataConfig
from trainers import Compiler, ImageData, ModelSource, choose_device, find_weights, open_data
from trainers.models import speed_up_small_maps


def fastai(setting: Setting) -> Epoch:
    """An epoch of fastai's Learner, with torch's AdamW and without its progress bar."""
    from fastai.callback.core import Callback
    from fastai.callback.fp16 import AMPMode, MixedPrecision
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    device, (mean, std) = setting.device.torch, setting.statistics()

    class Shown(Callback):  # type: ignore[misc]
        """Moves a batch to the device and normalises it."""

        def before_batch(self) -> None:
            (images,), (targets,) = self.xb, self.yb
            inputs = (images.to(device, non_blocking=True).float() - mean) / std
            self.learn.xb = (inputs.contiguous(memory_format=torch.channels_last),)
            self.learn.yb = (targets.to(device, non_blocking=True),)

    learner = Learner(
        DataLoaders(setting.loader(), setting.loader("val")),
        setting.model(),
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        lr=LR,
        cbs=[Shown()] + [MixedPrecision(amp_mode=AMPMode.BF16)] * setting.device.bf16,
    )

    def epoch() -> None:
        with learner.no_bar(), learner.no_logging():
            learner.fit(1)

    return epoch


LOOPS: dict[str, Callable[[Setting], Epoch]] = {
    "bare loop": bare,
    "ours": ours,
    "timm's train script": timm_loop,
    "fastai Learner": fastai,
}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    device = choose_device(options.device)
    result: dict[str, Any] = {
        "machine": machine(),
        "device": device.description,
        **{key: value for key, value in vars(options).items() if key not in ("json", "device", "quick")},
    }
    with tempfile.TemporaryDirectory(prefix="unfreeze-trainer-") as folder:
        data = open_random(Path(folder), options.steps * options.batch_size, options.image_size)
        source = ModelSource(options.model, find_weights(options.model, ["none"]), CLASSES, options.image_size)
        setting = Setting(source, data, options.batch_size, options.steps, options.repeats + 1, device)
        loops = dict(LOOPS)
        if device.torch.type == "cpu":
            loops["bare loop, our gradients"] = partial(bare, prepare=speed_up_small_maps)
        if options.compile != "off":
            compiler = Compiler(options.compile, device, Path(folder) / "compiled")
            loops["ours, compiled"] = partial(ours, compiler=compiler)
        result["matrix_peak_flops"] = peak = matrix_peak(device)
        result["image_flops"] = flops = image_flops(setting)
        result["loops"], result["left_out"] = measured(loops, setting, options.repeats)
        for loop in result["loops"].values():
            loop["share_of_peak"] = loop["images_per_second"] * flops / peak
    show(result)
    write_json(result, options.json)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="a timm model")
    parser.add_argument("--image-size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="updates an epoch")
    parser.add_argument("--repeats", type=int, default=5, help="epochs measured; the median counts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; a GPU computes in bf16")
    parser.add_argument("--compile", default="off", choices=("off", "default", "reduce-overhead"), help="one more row")
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(arguments)


QUICK = {"model": "test_resnet", "image_size": 32, "batch_size": 8, "steps": 2, "repeats": 1}


def open_random(folder: Path, images: int, image_size: int) -> ImageData:
    """Noise as a data set of so many training images: what a picture shows does not change the speed."""
    random = np.random.default_rng(0)
    for part, count in {"train": 2 * images + 20 * CLASSES, "t10k": 2 * CLASSES}.items():
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28), np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.int64) % CLASSES)
    settings = DataConfig(
        source="torchvision",
        dataset="MNIST",
        root=str(folder),
        image_size=image_size,
        limit_train=images,
        limit_val=CLASSES,
        limit_test=CLASSES,
        cache=str(folder / "cache"),
    )
    return open_data(task="classification", in_chans=3, **settings.model_dump())


def write_idx(path: Path, values: "np.ndarray[Any, Any]") -> None:
    """An IDX file of unsigned bytes, as the MNIST family has them."""
    head = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), compresslevel=1))


def measured(
    loops: dict[str, Callable[[Setting], Epoch]], setting: Setting, repeats: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Seconds of each epoch and images per second of each loop; and the loops left out, with the reason."""
    epochs: dict[str, Epoch] = {}
    left_out: dict[str, str] = {}
    for name, make in loops.items():
        try:
            epochs[name] = make(setting)
        except ModuleNotFoundError as error:
            left_out[name] = f"{error.name} is not installed; pip install -e '.[bench]'"
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for repeat in range(repeats + 1):
        for name, epoch in epochs.items():
            took = seconds_of(epoch, setting.device.torch)
            if repeat > 0:
                seconds[name].append(took)
    images = setting.steps * setting.batch_size
    found = {
        name: {"seconds": taken, "images_per_second": images / statistics.median(taken)}
        for name, taken in seconds.items()
    }
    return found, left_out


def show(result: dict[str, Any]) -> None:
    table = Table(
        title="{model}, {image_size} px, batches of {batch_size}".format(**result),
        caption="{device}; {steps} steps an epoch, median of {repeats}".format(**result),
    )
    table.add_column("loop")
    for name in ("images/s", "of the bare loop", "of the matrix peak"):
        table.add_column(name, justify="right")
    loops = result["loops"]
    limit = loops["bare loop"]["images_per_second"]
    for name, loop in loops.items():
        speed, share = loop["images_per_second"], loop["share_of_peak"]
        table.add_row(name, f"{speed:,.0f}", f"{speed / limit:.3f}", f"{share:.3f}")
    Console().print(table)
    for name, reason in result["left_out"].items():
        print(f"{name} is left out: {reason}")


if __name__ == "__main__":
    main()
