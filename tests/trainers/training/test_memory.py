"""What does not fit into memory is done in parts where parts come to the same, and else fails with advice."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from copies import copies
from small_training import DATA, DEVICE, short_of_memory

from strategies import Strategy, make_plan
from trainers import (
    TASKS,
    ActivationStore,
    ModelSource,
    Reuse,
    Setting,
    Teacher,
    Trainer,
    Weights,
    normaliser,
    predict,
)
from trainers.memory import Fitting, in_parts, is_out_of_memory
from trainers.training import features_of

ROOT = Path(__file__).resolve().parents[3]
# A process that trains by batches of 128, with so many MiB beyond what it begins with; it prints how many it took.
# oneDNN does not bear every lack of memory: now and then its code is not there and is called all the same.
TRAINING = """
import os, re, resource, sys
import torch
torch.backends.mkldnn.set_flags(False)
from search.config import DataConfig
from strategies import Strategy
from trainers import ModelSource, Trainer, choose_device, find_weights, open_data

data = open_data(
    task="classification", in_chans=3,
    **DataConfig(source="digits", image_size=48, limit_train=128, limit_val=128, cache=sys.argv[1]).model_dump(),
)
source = ModelSource("resnet10t", find_weights("resnet10t", ["none"]), 10, 48)
strategy = Strategy(depth=1.0, lr=1e-3, batch_size=128, epochs=1, batch_norm="frozen_stats")
trainer = Trainer(source, data, strategy, 0, choose_device("cpu"))

def mebibytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

used = mebibytes("VmSize")
if sys.argv[2] != "all":
    limit = (used + int(sys.argv[2])) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
metrics = next(trainer).metrics
print(trainer.micro_batches, mebibytes("VmPeak") - used, metrics["train_loss"], metrics["val_loss"])
"""


# A process in which oneDNN has no memory for the code of new convolutions, and has it again afterwards.
CONVOLUTIONS = """
import logging, re, resource
import torch
from torch.nn.functional import conv2d
from trainers.memory import Fitting

logging.basicConfig(format="%(message)s")
torch.set_num_threads(1)
before = resource.getrlimit(resource.RLIMIT_AS)
# Between what stays in use there is room for small tensors, but for no code.
room = [torch.empty(60_000, dtype=torch.uint8) for _ in range(500)][::2]

def convolved(channels):
    return conv2d(torch.ones(2, channels, 9, 9), torch.ones(channels, channels, 3, 3))

def attempt(parts):
    if parts > 1:
        return convolved(24)
    used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024, before[1]))
    try:
        return [convolved(channels) for channels in range(3, 33)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

convolved(16)
print(*Fitting(2).do(attempt).unique().tolist(), torch.backends.mkldnn.enabled)
"""


def test_onednn_that_had_no_memory_once_is_done_without():
    done = subprocess.run([sys.executable, "-c", CONVOLUTIONS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["216.0", "False"]
    assert "goes on without oneDNN" in done.stderr


def trained(cache: Path, mebibytes: str) -> tuple[int, int, float, float]:
    process = copies().start(TRAINING, [str(cache), mebibytes], ROOT, os.environ)
    out, error = process.communicate()
    assert process.returncode == 0, error
    parts, taken, train_loss, val_loss = out.split()[-4:]
    return int(parts), int(taken), float(train_loss), float(val_loss)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_trained_in_parts_with_the_same_losses(tmp_path):
    in_one, taken, *losses = trained(tmp_path, "all")
    in_several, _, *losses_of_several = trained(tmp_path, str(taken * 2 // 3))
    assert in_one == 1
    assert in_several >= 2
    assert losses_of_several == pytest.approx(losses, rel=1e-4)


def out_of_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    return caught.value


def test_want_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(out_of_memory())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("posix_memalign failed:Cannot allocate memory (12)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


# As cuBLAS, cuDNN of two versions, cuSOLVER, NCCL, CUDA's runtime and driver, and torch's search for an engine say it.
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "NCCL error: unhandled cuda error, NCCL version 2.21.5\nLast error:\nCuda failure 2 'out of memory'",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "GET was unable to find an engine to execute this computation",
        "Unable to find an engine to execute this computation",
    ],
)
def test_want_of_memory_is_seen_in_every_message_of_a_gpu(message):
    assert is_out_of_memory(RuntimeError(message))


def test_memory_is_freed_and_the_same_batch_tried_again_before_it_is_divided():
    # Only a garbage collection frees what refers to itself.
    kept = [torch.empty(10)]
    kept.append(kept)
    held = weakref.ref(kept[0])
    del kept

    def attempt(parts: int) -> int:
        if held() is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return parts

    fitting = Fitting(8)
    assert fitting.do(attempt) == 1
    assert fitting.parts == 1


def test_the_same_goes_for_a_batch_that_may_not_be_divided():
    trainer = with_memory_for(16)
    forward, lacking = trainer._gradients._forward, [True]

    def short_once(*values):
        if lacking.pop() if lacking else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*values)

    trainer._gradients._forward = short_once
    assert next(trainer).metrics["train_loss"] == pytest.approx(next(with_memory_for(16)).metrics["train_loss"])
    assert trainer.micro_batches == 1


@pytest.mark.parametrize("fields", [{"ema": 0.9, "sam_rho": 0.05}, {"depth": 1}, {"schedule": "plateau"}])
def test_a_trainer_leaves_memory_with_its_last_reference(fields, tmp_path):
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    reuse = Reuse(ActivationStore(tmp_path, 2**30), always=True)
    gc.collect()
    gc.disable()
    try:
        trainer = Trainer(source, DATA, Strategy(epochs=1, batch_size=32, **fields), 0, DEVICE, reuse=reuse)
        next(trainer)
        model, optimizer = weakref.ref(trainer.model), weakref.ref(trainer.optimizer)
        del trainer
        assert model() is None
        assert optimizer() is None
    finally:
        gc.enable()


def limited(module: torch.nn.Module, images: int) -> None:
    """Let a module find no memory for more images at once."""

    def refuse(module, inputs):
        if len(inputs[0]) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    module.register_forward_pre_hook(refuse)


def test_stored_rows_and_the_proof_of_their_cut_take_the_memory_there_is(tmp_path):
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    strategy = Strategy(depth=1, epochs=1, batch_size=16).canonical(source.num_blocks)
    found = {}
    for images in (64, 5):
        model = source.build(0).eval()
        plan = make_plan(model, strategy)
        limited(model.get_submodule("conv1"), images)
        setting = Setting(source, model, plan, strategy, 0, DATA, normaliser(source.mean, source.std, DEVICE), DEVICE)
        reused = Reuse(ActivationStore(tmp_path / str(images), 2**30), sharing=1000.0).look_up(setting)
        assert reused.known.keys() == {"train", "val"}, reused.reason
        found[images] = next(reused.known["train"].rows.batches(torch.arange(64), 64, DEVICE.torch))
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_features_validation_and_a_teacher_take_the_memory_there_is():
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    how = normaliser(source.mean, source.std, DEVICE)
    found = []
    for images in (64, 5):
        model = source.build(0)
        limited(model.get_submodule("conv1"), images)
        outputs, _ = predict(model, DATA.val, Strategy(batch_size=16), how, TASKS["classification"], None, DEVICE)
        shown = torch.linspace(0, 1, 8 * 3 * 32 * 32).view(8, 3, 32, 32)
        answers = Teacher(model, how, 32, DEVICE).logits(shown)
        found.append((features_of(model, DATA.train, how, DEVICE), outputs, answers))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_parts_double_until_they_fit_and_stay():
    tried = []

    def attempt(parts: int) -> str:
        tried.append(parts)
        if parts < 4:
            raise out_of_memory()
        return "done"

    fitting = Fitting(8)
    assert fitting.do(attempt) == "done"
    assert fitting.do(attempt) == "done"
    # Memory is freed once, before parts are tried; the next batch begins with as many parts.
    assert tried == [1, 1, 2, 4, 4]
    with pytest.raises(RuntimeError, match="allocate"):
        Fitting(2).do(attempt)
    with pytest.raises(ValueError, match="another"):
        Fitting(8).do(lambda parts: (_ for _ in ()).throw(ValueError("another")))


def test_a_batch_is_divided_with_all_that_belongs_to_it():
    images, targets = torch.arange(10.0)[:, None], torch.arange(10)
    parts = list(in_parts(images, targets, None, parts=3))
    assert [len(part[1]) for part in parts] == [4, 3, 3]
    assert torch.cat([part[0] for part in parts]).equal(images)
    assert all(part[2] is None for part in parts)
    rows = (images, images * 2)
    for (first, second), some, _ in in_parts(rows, targets, None, parts=2):
        assert first.equal(some[:, None].float())
        assert second.equal(2 * first)


def with_memory_for(images: int, **fields) -> Trainer:
    """A trainer whose model finds no memory for more images at once."""
    strategy = Strategy(**{"epochs": 1, "batch_size": 16, "optimizer": "sgd"} | fields)
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    return short_of_memory(Trainer(source, DATA, strategy, 0, DEVICE), images)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "BatchNorm in train mode; take a smaller strategy.batch_size or strategy.batch_norm=frozen_stats"),
        ({"bss": 1e-3, "batch_norm": "frozen_stats"}, "strategy.bss=0.001; take a smaller strategy.batch_size"),
    ],
    ids=["batch_norm", "bss"],
)
def test_a_batch_that_parts_would_train_in_another_way_is_not_divided(fields, why):
    trainer = with_memory_for(8, **fields)
    with pytest.raises(MemoryError, match=rf"^a batch of 16 images does not fit, .* because of {why}$"):
        next(trainer)
    assert trainer.micro_batches == 1


# BatchNorm in train mode only where blocks are trained: below a linear probe it is frozen.
@pytest.mark.parametrize("fields", [{"depth": 0}, {"l2_sp": 1e-2, "delta": 1e-2, "batch_norm": "frozen_stats"}])
def test_a_batch_that_may_be_divided_is_trained_the_same_in_parts(fields):
    divided, whole = (with_memory_for(images, **fields) for images in (8, 16))
    assert next(divided).metrics == pytest.approx(next(whole).metrics, rel=1e-4)
    assert (divided.micro_batches, whole.micro_batches) == (2, 1)
