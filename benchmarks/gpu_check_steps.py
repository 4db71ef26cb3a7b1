"""Steps of ``benchmarks.gpu_check`` that compare results with what they should be."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks.gpu_check_fields import CASES, WAITING
from benchmarks.gpu_check_setup import CLASSES, RANDOM, Row, Setup, apart, losses, scenes, without_collector
from benchmarks.loops import matrix_peak
from strategies import Strategy
from trainers import (
    ActivationStore,
    Compiler,
    EpochResult,
    ModelSource,
    Probes,
    Ranks,
    Reuse,
    Teacher,
    Trainer,
    free_memory,
    join,
    leave,
    load_state,
    normaliser,
    save_state,
    top_of,
)
from trainers.data.split import ResidentSplit
from trainers.reuse.cut import check_cut, cut_at
from trainers.reuse.entry import Activations
from trainers.reuse.graph import trace_blocks
from trainers.reuse.rows import CutError
from trainers.training.synced_norm import sync_batch_norm

_FORK_SECONDS = 120.0
# Sizes of a float32 sum in another order, and of the mixed precision of a few updates.
_FP32, _BF16 = 1e-4, 5e-2


def forked_worker(setup: Setup) -> Iterator[Row]:
    """A fork of this process, from before CUDA began, can begin CUDA itself, as our workers do."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield Row("a fork begins CUDA", "not tried: CUDA has begun in this process", "", None)
        return
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # A fork lacks the threads that its parent may have had.
            torch.set_num_threads(1)
            code = 0 if (torch.ones(2, 2, device=setup.device().torch) * 2).sum().item() == 8 else 2
        finally:
            os._exit(code)
    until = time.monotonic() + _FORK_SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found = os.waitstatus_to_exitcode(status)
            yield Row("a fork begins CUDA", f"exit code {found}", "0", found == 0)
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    yield Row("a fork begins CUDA", f"hangs for {_FORK_SECONDS:.0f} s", "exit code 0", False)


def environment(setup: Setup) -> Iterator[Row]:
    """Versions, flags, and the rate of large products."""
    device = setup.device()
    yield Row("device", device.description)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "CUDA": torch.version.cuda}
    yield Row("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    if setup.has_cuda:
        major, minor = torch.cuda.get_device_capability(device.torch)
        yield Row("capability", f"{major}.{minor}, cuDNN {torch.backends.cudnn.version()}")
        yield Row("device has an index", str(device.torch), "cuda:N", device.torch.index is not None)
        yield Row("free memory", f"{device.free_bytes / 2**30:.1f} GiB")
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield Row("TF32 in products and convolutions", f"{flags[0]}, {flags[1]}")
    yield Row("product of large matrices", f"{matrix_peak(device) / 1e12:.2f} TFLOP/s")


def ranks(setup: Setup) -> Iterator[Row]:
    """The collectives of a training on several devices, with a group of one."""
    device = setup.device("fp32")

    class Group(Ranks):
        """One rank that does all that several would do."""

        is_alone = False  # type: ignore[assignment]

    join(setup.folder / "meeting", 0, 1, device.torch, timedelta(seconds=60))
    try:
        group = Group(0, 1)
        tensors = [torch.full((1000,), 3.0, device=device.torch), torch.ones(3, device=device.torch)]
        group.add_up(tensors)
        right = bool((tensors[0] == 3).all() and (tensors[1] == 1).all())
        yield Row("sum over the ranks", str(right), "True", right)
        images = torch.randn(8, 4, 6, 6, device=device.torch)
        outputs = []
        for synced in (False, True):
            norm = nn.Sequential(nn.BatchNorm2d(4)).to(device.torch)
            if synced:
                sync_batch_norm(norm, group)
            inputs = images.clone().requires_grad_()
            with group.stepping():
                found = norm(inputs)
            found.square().mul(images).sum().backward()
            outputs.append((found.detach(), inputs.grad))
        gap = max(float((a - b).abs().max()) for a, b in zip(*outputs, strict=True))  # type: ignore[operator, union-attr]
        yield Row("BatchNorm over the ranks", f"{gap:.1e} from plain", "below 1e-4", gap < _FP32)
    finally:
        leave()


def decoders(setup: Setup) -> Iterator[Row]:
    """Two updates of each detector and of a segmenter, in bf16."""
    device = setup.device("bf16")
    kinds = {"faster_rcnn": "detection", "retinanet": "detection", "fcos": "detection", "unet": "segmentation"}
    for decoder, task in kinds.items():
        source = setup.source(top=top_of(task, decoder, CLASSES, setup.side))
        loss = {"detection": "detector", "segmentation": "cross_entropy"}[task]
        strategy = Strategy(loss=loss, batch_size=4, epochs=1, lr=1e-3)
        trainer = Trainer(source, scenes(task, setup.side), strategy, 0, device)
        loss_found = next(trainer).metrics["train_loss"]
        seen = trainer.look()
        yield Row(decoder, f"loss {loss_found:.3f}", "finite, and predictions", seen is not None)


def against_cpu(setup: Setup) -> Iterator[Row]:
    """The same training in fp32 on the device and on the CPU."""
    fields = {"batch_norm": "frozen_stats", "lr": 1e-3}
    found = losses(setup.trainer(setup.device("fp32"), **fields))
    expected = losses(setup.trainer(Setup("cpu", setup.small, setup.folder).device("fp32"), **fields))
    gap = apart(found, expected)
    yield Row("fp32 losses, device against CPU", f"{gap:.1e} apart", f"below {_FP32:g}", gap < _FP32)


@contextmanager
def _watched(trainer: Trainer, waits: list[str]) -> Iterator[None]:
    """A context that notes where an update, from the second on, makes the host wait for a CUDA device."""
    if trainer.device.torch.type != "cuda":
        yield
        return
    show, step, updates = trainer._batches.show, trainer._stepper.step, 0

    def watched_show(*values: Any, **named: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates > 1:
            torch.cuda.set_sync_debug_mode("warn")
        return show(*values, **named)

    def watched_step() -> Any:
        try:
            return step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer._batches.show, trainer._stepper.step = watched_show, watched_step  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]


def fields(setup: Setup) -> Iterator[Row]:
    """Every field of a strategy in turn: it trains, and no update waits for the device."""
    device, data = setup.device(), setup.data()
    torch.manual_seed(0)
    # With a classifier of its own, as pretrained weights have one.
    state = {name: tensor.clone() for name, tensor in setup.source().build(0).state_dict().items()}
    source = ModelSource(setup.model, type(RANDOM)("noise", "0" * 16, state), CLASSES, setup.side)
    how = normaliser(source.mean, source.std, device)
    teacher = Teacher(source.build(1), how, setup.side, device)
    failed: dict[str, str] = {}
    waiting: dict[str, str] = {}
    for name, values in CASES.items():
        waits: list[str] = []
        strategy = Strategy(**{"batch_size": setup.images // 4, "epochs": 1, "lr": 1e-3, **values})
        try:
            trainer = Trainer(source, data, strategy, 0, device, teacher)
            with _watched(trainer, waits):
                next(trainer)
        except Exception as error:  # the other fields are tried too
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if waits and name not in WAITING:
            waiting[name] = waits[0]
    yield Row(f"{len(CASES)} cases train", _named(failed) or "all", "all", not failed)
    if setup.has_cuda:
        yield Row("updates that wait for the device", _named(waiting) or "none", "none", not waiting)


def _named(found: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in found.items())


FAMILIES = ("resnet50", "vit_small_patch16_224", "convnext_tiny", "efficientnet_b0", "swin_tiny_patch4_window7_224")
_SMALL_FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet")


def cuts(setup: Setup) -> Iterator[Row]:
    """The proof that a model in two parts is the whole model, bit for bit, at its first, middle and last block."""
    names, side, count = (_SMALL_FAMILIES, 32, 4) if setup.small else (FAMILIES, 224, 16)
    for name in names:
        source = ModelSource(name, RANDOM, CLASSES, side)
        blocks = source.num_blocks
        for precision in ("fp32", "bf16"):
            device = setup.device(precision)
            model = source.build(0).to(device.torch)
            model.to(memory_format=torch.channels_last)
            images = torch.randn(count, 3, side, side, device=device.torch)
            images = images.contiguous(memory_format=torch.channels_last)
            wrong = []
            with device.autocast():
                graph = trace_blocks(model, (3, side, side))
                for k in (1, blocks // 2, blocks):
                    try:
                        check_cut(model, cut_at(graph, model, k), images)
                    except CutError as error:
                        wrong.append(str(error))
            yield Row(f"{name}, {precision}", "; ".join(wrong) or "exact", "exact", not wrong)


def reuse(setup: Setup) -> Iterator[Row]:
    """A training on stored activations against one that computes everything."""
    for precision, tolerance in (("fp32", _FP32), ("auto", _BF16)):
        device = setup.device(precision)
        store = ActivationStore(setup.folder / f"reuse {precision}", 2**32)
        fields = {"depth": 1, "epochs": 2}
        shared = setup.trainer(device, reuse=Reuse(store, always=True), **fields)
        yield Row(
            f"{device.precision}, what is read",
            ", ".join(shared.reused.known),
            "train, val",
            len(shared.reused.known) == 2,
        )
        gap = apart(losses(shared), losses(setup.trainer(device, **fields)))
        yield Row(
            f"{device.precision} losses with and without", f"{gap:.1e} apart", f"below {tolerance:g}", gap < tolerance
        )


def rows(setup: Setup) -> Iterator[Row]:
    """Rows and images that are kept on the device against those that are gathered on the host."""
    device = setup.device().torch
    tensors = (torch.randn(500, 7, 3), torch.randn(500, 40).bfloat16())
    order = torch.randperm(500)
    kinds = [Activations(tensors, keep=keep) for keep in (True, False)]
    pairs = zip(*(kind.batches(order, 64, device) for kind in kinds), strict=True)
    alike = all(torch.equal(a, b) for both in pairs for a, b in zip(*both, strict=True))
    yield Row("rows kept and gathered", "equal" if alike else "different", "equal", alike)
    pixels = torch.randint(0, 256, (300, 3, 16, 16), dtype=torch.uint8).numpy()
    splits = [
        kind(torch.arange(300), [""] * 300, pixels, torch.arange(300).numpy()) for kind in (ResidentSplit, OnHost)
    ]
    order = torch.randperm(300)
    both = zip(*(split.batches(order, 64, device) for split in splits), strict=True)
    alike = all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in both)
    yield Row("images kept and gathered", "equal" if alike else "different", "equal", alike)
    if setup.has_cuda:
        kept = device in splits[0]._kept and device not in splits[1]._kept and kinds[0].bytes_on(device) > 0
        yield Row("they are kept where they fit", str(kept), "True", kept)


class OnHost(ResidentSplit):
    """A split that is never kept on a device."""

    def _should_keep(self, device: torch.device) -> bool:
        return False


def same_seed(setup: Setup) -> Iterator[Row]:
    """Two trainings with one seed, as they are and with the key ``deterministic``; and what it costs."""
    took = {}
    for deterministic in (False, True):
        device = setup.device(deterministic=deterministic)
        found = []
        for _ in range(2):
            began = time.perf_counter()
            found.append(losses(setup.trainer(device, augment="medium", epochs=2)))
            took[deterministic] = time.perf_counter() - began
        gap = apart(*found)
        expected = "0" if deterministic else ""
        how = "deterministic" if deterministic else "as it is"
        yield Row(f"same seed twice, {how}", f"{gap:.1e} apart", expected, gap == 0 if deterministic else None)
    yield Row("deterministic takes", f"{took[True] / took[False]:.2f} of the time")
    for task, decoder, loss in (("segmentation", "fcn", "cross_entropy"), ("detection", "fcos", "detector")):
        device = setup.device(deterministic=True)
        source = setup.source(top=top_of(task, decoder, CLASSES, setup.side))
        strategy = Strategy(loss=loss, batch_size=4, epochs=1)
        data = scenes(task, setup.side)
        two = [next(Trainer(source, data, strategy, 0, device)).metrics["train_loss"] for _ in range(2)]
        yield Row(
            f"same seed twice, deterministic, {task}", f"{apart(two[:1], two[1:]):.1e} apart", "0", two[0] == two[1]
        )
    setup.device()


def go_on(setup: Setup) -> Iterator[Row]:
    """A training that is saved, loaded and gone on with, against one without a break."""
    device = setup.device(deterministic=True)
    how = {"epochs": 2, "augment": "medium", "ema": 0.9, "dropout": 0.1}
    expected = losses(setup.trainer(device, **how))[2:]
    broken = setup.trainer(device, **how)
    next(broken)
    path = setup.folder / "state.pt"
    save_state(broken.state_dict(), path)
    resumed = setup.trainer(device, **how)
    resumed.load_state_dict(load_state(path))
    gap = apart(losses(resumed), expected)
    yield Row("after a break", f"{gap:.1e} apart", "0", gap == 0)
    before, stayed = broken.weights(), broken.weights(stay=True)
    alike = all(torch.equal(before[name], tensor.cpu()) for name, tensor in stayed.items())
    where = next(iter(stayed.values())).device.type
    yield Row(
        "best weights stay on the device",
        f"{where}, equal: {alike}",
        f"{device.torch.type}, equal: True",
        alike and where == device.torch.type,
    )
    setup.device()


def fp16(setup: Setup) -> Iterator[Row]:
    """A training in fp16 with a scaled loss against fp32."""
    fields = {"batch_norm": "frozen_stats", "lr": 1e-3, "epochs": 2}
    trainer = setup.trainer(setup.device("fp16"), **fields)
    gap = apart(losses(trainer), losses(setup.trainer(setup.device("fp32"), **fields)))
    yield Row("fp16 losses against fp32", f"{gap:.1e} apart", f"below {_BF16:g}", gap < _BF16)
    yield Row("its scale at the end", f"{trainer.state_dict()['loss_scale']['scale']:g}")


def memory(setup: Setup) -> Iterator[Row]:
    """With little memory batches are seen in parts, rows are computed in parts, and everything is given back."""
    if not setup.has_cuda:
        yield Row("memory of a GPU", "not tried on a CPU")
        return
    device = setup.device()
    where, total = device.torch, torch.cuda.mem_get_info(device.torch)[1]
    size = {"batch_norm": "frozen_stats", "batch_size": setup.images}
    setup.trainer(device, **size).__next__()
    free_memory()
    baseline = torch.cuda.memory_allocated(where)
    torch.cuda.reset_peak_memory_stats(where)
    with without_collector():
        trainer = setup.trainer(device, **size)
        expected = next(trainer).metrics["train_loss"]
        peak = torch.cuda.max_memory_allocated(where) - baseline
        del trainer
        left = torch.cuda.memory_allocated(where) - baseline
    yield Row("a finished trial leaves", f"{left / 2**20:.1f} MiB without the collector", "below 1 MiB", left < 2**20)
    free_memory()
    trainer = setup.trainer(device, **size)
    held = torch.cuda.memory_allocated(where) - baseline
    # Room for the model, its gradients and half of the rest.
    limit = baseline + held + (peak - held) // 2
    try:
        torch.cuda.set_per_process_memory_fraction(limit / total, where)
        found = next(trainer).metrics["train_loss"]
        parts = trainer.micro_batches
        store = ActivationStore(setup.folder / "short", 2**32)
        short = setup.trainer(device, depth=1, reuse=Reuse(store, always=True))
        reason = short.reused.reason
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, where)
    yield Row("a batch in little memory", f"{parts} parts", "above 1", parts > 1)
    gap = apart([found], [expected])
    yield Row("its loss", f"{gap:.1e} apart", f"below {_BF16:g}", gap < _BF16)
    yield Row("rows in little memory", reason, "reuse: as asked", reason == "reuse: as asked")
    del trainer, short
    free_memory()
    left = torch.cuda.memory_allocated(where) - baseline
    yield Row("memory afterwards", f"{left / 2**20:.1f} MiB above the baseline", "below 64 MiB", left < 2**26)


def probes(setup: Setup) -> Iterator[Row]:
    """Linear probes trained as one against those trained alone."""
    device, data, source = setup.device("fp32"), setup.data(), setup.source()
    strategies = [
        Strategy(depth=0, lr=lr, batch_size=setup.images // 4, epochs=2, optimizer=optimizer)
        for lr, optimizer in ((1e-2, "adamw"), (1e-1, "sgd"), (1e-3, "adamw"))
    ]
    together = []
    for epoch in Probes(source, data, strategies, 0, device):
        results = [epoch[k] for k in range(len(strategies))]
        together.append([result.metrics["val_loss"] for result in results if isinstance(result, EpochResult)])
    each = [[one.metrics["val_loss"] for one in Trainer(source, data, s, 0, device)] for s in strategies]
    alone = zip(*each, strict=True)
    gap = max(apart(a, list(b)) for a, b in zip(together, alone, strict=True))
    yield Row("probes as one against alone", f"{gap:.1e} apart", "below 1e-3", gap < 1e-3)


def compiled(setup: Setup) -> Iterator[Row]:
    """Compiled trainings against one that is not, and what torch says of them."""
    if not setup.has_cuda:
        yield Row("compile", "not tried on a CPU")
        return
    from torch._dynamo.utils import counters

    device = setup.device()
    fields = {"epochs": 2, "lr": 1e-3}
    expected = losses(setup.trainer(device, **fields))
    for mode in ("default", "reduce-overhead"):
        torch._dynamo.reset()
        counters.clear()
        trainer = setup.trainer(device, compiler=Compiler(mode, device, setup.folder / "compiled"), **fields)
        gap = apart(losses(trainer), expected)
        yield Row(f"{mode}: losses", f"{gap:.1e} apart", f"below {_BF16:g}", gap < _BF16)
        reason = trainer.forward.reason
        yield Row(f"{mode}: says", reason, f"compile: {mode}", reason == f"compile: {mode}")
        graphs, skipped = counters["stats"]["unique_graphs"], counters["inductor"]["cudagraph_skips"]
        yield Row(
            f"{mode}: graphs",
            f"{graphs} compiled, {skipped} CUDA graphs left out",
            "at most 4, 0",
            graphs <= 4 and not skipped,
        )


STEPS = {
    "forked worker": forked_worker,
    "environment": environment,
    "ranks of one": ranks,
    "decoders": decoders,
    "against the CPU": against_cpu,
    "fields": fields,
    "cuts": cuts,
    "reuse": reuse,
    "rows": rows,
    "same seed": same_seed,
    "go on": go_on,
    "fp16": fp16,
    "memory": memory,
    "probes": probes,
    "compile": compiled,
}
