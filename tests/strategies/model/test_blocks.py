import pytest
import timm
from torch import nn

from strategies import ConfigError, split_blocks

MODELS = [
    "resnet10t",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "densenet121",
    "regnetx_002",
]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_and_leaf_module_is_in_exactly_one_block(name):
    model = timm.create_model(name, num_classes=3)
    blocks = split_blocks(model)
    parts = (*blocks.body, blocks.head)
    params = [param for block in parts for param in block.params]
    modules = [module for block in parts for module in block.modules]
    leaves = [module for module, found in model.named_modules() if module and not any(found.children())]
    assert sorted(params) == sorted(dict(model.named_parameters()))
    assert sorted(modules) == sorted(leaves)
    assert all(block.params for block in blocks.body)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 9), ("vit_tiny_patch16_224", 13)])
def test_blocks_run_from_the_input_to_the_head(name, count):
    model = timm.create_model(name, num_classes=3)
    blocks = split_blocks(model)
    assert len(blocks) == count
    first = next(iter(dict(model.named_parameters())))
    assert first in blocks.body[0].params
    classifier = {f"{'fc' if name == 'resnet18' else 'head'}.{part}" for part in ("weight", "bias")}
    assert set(blocks.head.params) == classifier


def test_a_model_that_does_not_tell_its_layers_is_refused():
    with pytest.raises(ConfigError, match="no group_matcher"):
        split_blocks(nn.Linear(2, 2))
