"""What torch has not promised to keep is still there, and is what :mod:`trainers.private_apis` takes it for."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision import datasets

from trainers import private_apis
from trainers.data.sources.torchvision_sets import _SETS

ROOT = Path(private_apis.__file__).parent

#: By name of a private function: the parameters that it is called with.
FUNCTIONS = {
    "torch.nn.modules._functions.SyncBatchNorm.forward": (
        *("self", "input", "weight", "bias", "running_mean", "running_var", "eps", "momentum"),
        *("process_group", "world_size"),
    ),
    "torch.distributed.distributed_c10d._abort_process_group": (),
    "torch.backends.mkldnn.set_flags": ("_enabled", "_fp32_precision"),
    "torch._inductor.list_mode_options": ("mode",),
    "torch.nn.Conv2d._conv_forward": ("self", "input", "weight", "bias"),
    "torch.nn.Module._load_from_state_dict": (
        *("self", "state_dict", "prefix", "local_metadata", "strict"),
        *("missing_keys", "unexpected_keys", "error_msgs"),
    ),
}

#: Those that are called by position.
BY_POSITION = (
    "torch.nn.modules._functions.SyncBatchNorm.forward",
    "torch.nn.Conv2d._conv_forward",
    "torch.nn.Module._load_from_state_dict",
)

#: By name of a private class or setting: the class that it is of.
VALUES = {
    "torch.nn.modules.batchnorm._BatchNorm": type,
    "torch.nn.modules._functions.SyncBatchNorm": type,
    "torch._dynamo.exc.TorchDynamoException": type,
    "torch._dynamo.exc.FailOnRecompileLimitHit": type,
    "torch._dynamo.utils.counters": dict,
    "torch._dynamo.config.recompile_limit": int,
    "torch._functorch.config.force_non_lazy_backward_lowering": bool,
}


def found(name: str):
    """The object of a dotted name; the test fails by that name and torch's version where it is gone."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            value = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                pytest.fail(f"torch {torch.__version__} has no {name}; see trainers/private_apis.py")
            value = getattr(value, part)
        return value
    return pytest.fail(f"torch {torch.__version__} has no {name}; see trainers/private_apis.py")


def changed(name: str) -> str:
    return f"{name} is another in torch {torch.__version__}, timm {timm.__version__}; see trainers/private_apis.py"


@pytest.mark.parametrize(("name", "wanted"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_a_private_function_takes_what_it_is_given(name, wanted):
    params = inspect.signature(found(name)).parameters
    assert set(wanted) <= params.keys(), changed(name)
    required = {key for key, param in params.items() if param.default is param.empty}
    assert required <= set(wanted), changed(name)
    if name in BY_POSITION:
        assert tuple(params) == wanted, changed(name)


@pytest.mark.parametrize(("name", "kind"), VALUES.items(), ids=VALUES)
def test_a_private_class_or_setting_is_there(name, kind):
    assert isinstance(found(name), kind), changed(name)


def test_the_private_base_class_is_that_of_every_batch_norm_and_has_its_forward():
    name = "torch.nn.modules.batchnorm._BatchNorm"
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, timm.layers.BatchNormAct2d):
        assert issubclass(norm, private_apis.BatchNorm), changed(name)
    assert nn.BatchNorm2d.forward is private_apis.BatchNorm.forward, changed(name)


def test_a_convolution_calls_the_function_that_is_set():
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    images = torch.rand(1, 2, 8, 8)
    before = conv(images)
    private_apis.set_conv_forward(conv, lambda conv, *inputs: 2 * private_apis.conv_forward(conv, *inputs))
    assert torch.equal(conv(images), 2 * before), changed("torch.nn.Conv2d._conv_forward")


def test_writing_in_place_is_counted():
    tensor = torch.zeros(2)
    before = private_apis.write_count(tensor)
    tensor.add_(1)
    assert private_apis.write_count(tensor) == before + 1, changed("torch.Tensor._version")


@pytest.mark.parametrize("name", _SETS)
def test_a_torchvision_set_keeps_its_targets_where_they_are_looked_for(name):
    bases = [base for base in getattr(datasets, name).__mro__ if base.__module__.startswith("torchvision")]
    source = "".join(map(inspect.getsource, bases))
    found = any(f"self.{attribute} = " in source for attribute in ("targets", "_labels", "labels", "_samples"))
    assert found, f"{name} is another in torchvision {torchvision.__version__}; see trainers/private_apis.py"


def test_modes_of_compile_differ_in_cuda_graphs():
    name = "torch._inductor.list_mode_options"
    assert private_apis.options_of_mode("default") == {}, changed(name)
    assert private_apis.options_of_mode("reduce-overhead") == {"triton.cudagraphs": True}, changed(name)


def test_what_cannot_be_compiled_raises_an_error_that_is_known():
    def with_print(x):
        print("a graph break")
        return x + 1

    compiled = torch.compile(with_print, fullgraph=True, backend="eager")
    with pytest.raises(private_apis.compile_errors()) as caught:
        compiled(torch.ones(2))
    assert private_apis.is_dynamo_error(caught.value), changed("torch._dynamo.exc.TorchDynamoException")


def test_onednn_is_switched_off_without_touching_the_precision():
    before = torch.backends.mkldnn.fp32_precision
    try:
        private_apis.disable_onednn()
        assert not torch.backends.mkldnn.enabled, changed("torch.backends.mkldnn.set_flags")
        assert torch.backends.mkldnn.fp32_precision == before, changed("torch.backends.mkldnn.set_flags")
    finally:
        torch.backends.mkldnn.set_flags(True, _fp32_precision=None)


def dotted(node: ast.expr) -> str:
    """The name that a chain of attributes spells; empty if it does not begin with a name."""
    if isinstance(node, ast.Attribute):
        begin = dotted(node.value)
        return f"{begin}.{node.attr}" if begin else ""
    return node.id if isinstance(node, ast.Name) else ""


def private_names(file: Path) -> list[str]:
    """Names beginning with an underscore that a file imports from, or reads of, torch, timm and torchvision.

    What is read of an object is not seen.
    """
    tree = ast.parse(file.read_text())
    modules = {"torch", "timm", "torchvision"}
    names: list[str] = []
    local = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
            local |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] in modules]
            local |= {alias.asname or "torch" for alias in node.names if alias.name.split(".")[0] in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node)).split(".")[0] in local:
            names.append(name)
    return [name for name in names if any(part.startswith("_") and part[1:2] != "_" for part in name.split("."))]


def test_no_other_module_uses_a_private_name():
    assert private_names(ROOT / "private_apis.py")
    others = [file for file in ROOT.rglob("*.py") if file.name != "private_apis.py"]
    found = {str(file.relative_to(ROOT)): names for file in others if (names := private_names(file))}
    assert not found, "private names of torch and timm belong into trainers/private_apis.py"
