import os

import pytest
import torch
from small_training import DATA
from torch.cuda._utils import _get_device_index

from strategies import ConfigError, Strategy
from trainers import ModelSource, Trainer, Weights, choose_device
from trainers.device import allow_tf32
from trainers.reuse.entry import can_be_kept


@pytest.fixture
def tf32_kept():
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def test_auto_takes_what_is_there():
    device = choose_device()
    assert device.torch.type == ("cuda" if torch.cuda.is_available() else device.torch.type)
    assert device.description.endswith("bf16" if device.bf16 else "fp32")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_decides_what_a_matrix_product_computes_in(precision, dtype):
    with choose_device("cpu", precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("name", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"device: '{name}' cannot be used"):
        choose_device(name)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_or_forbidden_in_products_and_convolutions(allowed, tf32_kept):
    allow_tf32(allowed)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_a_cpu_leaves_tf32_as_it_is(tf32_kept):
    allow_tf32(False)
    choose_device("cpu", "bf16")
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_fp16_is_what_a_matrix_product_computes_in():
    device = choose_device("cpu", "fp16")
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
    assert device.arithmetic == "cpu, fp16"


@pytest.fixture
def as_if_a_gpu_were_there(monkeypatch, tf32_kept):
    """The calls to CUDA that choosing a device makes, answered as by the second of two GPUs with 8 GiB."""
    monkeypatch.setattr(torch, "zeros", lambda size, device: torch.ones(size))
    answers = {
        "current_device": 1,
        "get_device_capability": (9, 0),
        "mem_get_info": (2 * 2**30, 8 * 2**30),
        "memory_reserved": 5 * 2**30,
        "memory_allocated": 2**30,
        "max_memory_allocated": 4 * 2**30,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, answer=answer: answer)


def test_a_gpu_has_the_index_that_torch_asks_for(as_if_a_gpu_were_there):
    device = choose_device("cuda").torch
    # What torch.cuda.set_device does first, and refuses a device without an index.
    assert _get_device_index(device) == 1
    assert choose_device("cuda:0").torch.index == 0


def test_free_memory_is_also_what_torch_would_give_back(as_if_a_gpu_were_there):
    device = choose_device("cuda", "fp32")
    assert device.free_bytes == 6 * 2**30
    # At its peak the process held three more.
    assert device.spare_bytes == 3 * 2**30


def test_what_does_not_fit_now_may_fit_in_the_next_pass(as_if_a_gpu_were_there, monkeypatch):
    device = torch.device("cuda", 1)
    size = 3 * 32 * 32 * 64
    free = [1]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0] - 4 * 2**30, 8 * 2**30))
    assert not can_be_kept(size, device)
    assert not DATA.train._should_keep(device)
    free[0] = 3 * size
    assert can_be_kept(size, device)
    assert DATA.train._should_keep(device)


@pytest.fixture
def determinism_kept(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    choose_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = False


def test_determinism_is_asked_of_torch_of_cudnn_and_of_cublas(determinism_kept):
    device = choose_device("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    # The fastest algorithm may be another one each time.
    device.tune_convolutions(sizes_are_fixed=True)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("fixed", [True, False])
def test_cudnn_tries_its_algorithms_where_sizes_are_fixed(determinism_kept, fixed):
    source = ModelSource("test_resnet", Weights("none", "random", None), 2, 32)
    strategy = Strategy(depth=0, epochs=2, batch_size=32, grow_from=1.0 if fixed else 0.5)
    next(Trainer(source, DATA, strategy, 0, choose_device("cpu")))
    assert torch.backends.cudnn.benchmark is fixed
