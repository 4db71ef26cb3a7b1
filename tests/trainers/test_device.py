import pytest
import torch

from strategies import ConfigError
from trainers import choose_device


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
