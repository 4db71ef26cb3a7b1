import pytest
import torch

from strategies import ConfigError
from trainers import choose_device
from trainers.device import allow_tf32


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
