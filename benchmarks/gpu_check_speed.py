"""The throughput of a trial, for ``benchmarks.gpu_check``: images a second beside the bare loop and timm's."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu_check_setup import CLASSES, RANDOM, Row, Setup, data_of
from benchmarks.gpu_check_steps import OnHost
from benchmarks.loops import Epoch, Setting, bare, image_flops, matrix_peak, ours, seconds_of, timm_loop
from strategies import Strategy
from trainers import ActivationStore, Compiler, ModelSource, Reuse, Trainer, free_memory

MODELS = ("resnet50", "vit_base_patch16_224")
# Updates an epoch, and measured epochs after one that is not.
_UPDATES, _REPEATS = 10, 3
# Each epoch of ours ends with a validation, which the bare loop has not.
_HELD_OUT = 16
_AIM, _AIM_AUGMENTED, _AIM_OF_FLOOR = 0.95, 0.9, 2 / 3


def throughput(setup: Setup) -> Iterator[Row]:
    """Images a second of every loop, for each model and batch size."""
    models, side, sizes = (("test_resnet",), 32, (8,)) if setup.small else (MODELS, 224, (64, 256))
    device = setup.device()
    peak = matrix_peak(device)
    for name in models:
        for size in sizes:
            updates, repeats = (2, 1) if setup.small else (_UPDATES, _REPEATS)
            images = updates * size
            source = ModelSource(name, RANDOM, CLASSES, side)
            data = data_of(images, _HELD_OUT, side)
            setting = Setting(source, data, size, updates, repeats + 1, device)
            on_host = Setting(source, data_of(images, _HELD_OUT, side, OnHost), size, updates, repeats + 1, device)
            loops: dict[str, Callable[[], Epoch]] = {
                "bare loop": partial(bare, setting),
                "bare loop, cudnn.benchmark": partial(bare, setting, tuned=True),
                "timm's loop": partial(timm_loop, setting),
                "ours": partial(ours, setting),
                "ours, medium": partial(ours, setting, augment="medium"),
                "ours, rand": partial(ours, setting, policy="rand"),
                "ours, gathered from the host": partial(ours, on_host),
            }
            if setup.has_cuda and size == sizes[0]:
                compiler = Compiler("default", device, setup.folder / "compiled")
                loops["ours, compiled"] = partial(ours, setting, compiler=compiler)
            yield from _loops(f"{name}, {size}", loops, setting, peak, judged=setup.has_cuda)
            if size == sizes[0]:
                yield from _validation(f"{name}, {size}", setting)
                yield from _on_rows(f"{name}, {size}", setting, setup)


def _loops(
    title: str, loops: dict[str, Callable[[], Epoch]], setting: Setting, peak: float, judged: bool
) -> Iterator[Row]:
    """A row for each loop; aims are judged on a GPU alone."""
    speeds: dict[str, float] = {}
    floor = peak / image_flops(setting)
    for name, make in loops.items():
        # Made one after the other: all models at once would leave less memory for each.
        speeds[name] = _speed(make(), setting)
        free_memory()
        best = max(speeds.get("bare loop", 0.0), speeds.get("bare loop, cudnn.benchmark", 0.0))
        share, of_peak = speeds[name] / best, speeds[name] / floor
        expected, ok = "", None
        if judged and name.startswith("ours") and name != "ours, gathered from the host":
            aim = _AIM if name in ("ours", "ours, compiled") else _AIM_AUGMENTED
            aims = {f"{aim:g} of the best bare loop": share >= aim}
            if name == "ours":
                aims["timm's"] = speeds[name] >= speeds["timm's loop"]
                if setting.source.name.startswith("vit"):
                    aims[f"{_AIM_OF_FLOOR:.2f} of the peak"] = of_peak >= _AIM_OF_FLOOR
            expected, ok = ", ".join(aims), all(aims.values())
        found = f"{speeds[name]:,.0f} images/s, {share:.2f} of the best bare loop, {of_peak:.2f} of the peak"
        yield Row(f"{title}: {name}", found, expected, ok)


def _speed(epoch: Epoch, setting: Setting) -> float:
    """Images a second, the median of some epochs after one that is not measured."""
    took = [seconds_of(epoch, setting.device.torch) for _ in range(setting.epochs)][1:]
    return setting.steps * setting.batch_size / statistics.median(took)


def _validation(title: str, setting: Setting) -> Iterator[Row]:
    strategy = Strategy(depth=1.0, batch_size=setting.batch_size, epochs=1)
    trainer = Trainer(setting.source, setting.data, strategy, 0, setting.device)
    took = [seconds_of(lambda: trainer.predict(setting.data.train), setting.device.torch) for _ in range(3)]
    yield Row(f"{title}: validation", f"{len(setting.data.train) / min(took):,.0f} images/s")


def _on_rows(title: str, setting: Setting, setup: Setup) -> Iterator[Row]:
    """Building the activations in front of the last block, and training on them."""
    folder = setup.folder / title
    strategy = Strategy(depth=1, batch_size=setting.batch_size, epochs=setting.epochs)
    began = time.perf_counter()
    reuse = Reuse(ActivationStore(folder, 2**35), always=True)
    trainer = Trainer(setting.source, setting.data, strategy, 0, setting.device, reuse=reuse)
    took = time.perf_counter() - began
    size = sum(part.rows.bytes for part in trainer.reused.known.values()) / 1e6
    kinds = {str(row.dtype).removeprefix("torch.") for part in trainer.reused.known.values() for row in part.cut.rows}
    yield Row(f"{title}: building activations", f"{size / took:,.0f} MB/s ({size:,.0f} MB of {', '.join(kinds)})")
    yield Row(f"{title}: depth 1 on rows", f"{_speed(lambda: next(trainer), setting):,.0f} images/s")
    torch.backends.cudnn.benchmark = False


STEPS = {"throughput": throughput}
