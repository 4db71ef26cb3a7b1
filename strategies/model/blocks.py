"""A model as a sequence of blocks, the units of unfreezing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from timm.models import group_parameters
from timm.models._manipulate import group_with_matcher
from torch import nn

from strategies.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Block:
    """Names of the parameters and leaf modules that are frozen or trained together."""

    params: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A model's blocks from the input towards the head, and the head, which is always trained.

    ``decoder`` names the head's parameters that lie between the body and the last layers; classifiers have none.
    """

    body: tuple[Block, ...]
    head: Block
    decoder: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.body)


def split_blocks(model: nn.Module) -> Blocks:
    """Divide a classifier with the methods of timm's into blocks.

    A block is one group of its ``group_matcher(coarse=False)``, in its order, without the classifier's parameters.
    The head is the classifier. Leaf modules without parameters (dropout, drop path, activations) belong to the block
    that their name matches, so that a frozen block can be put into eval mode whole; without a match, to the head.

    Raises:
        ConfigError: The model has no ``group_matcher`` or no classifier.
    """
    if not callable(getattr(model, "group_matcher", None)):
        raise ConfigError(f"model {type(model).__name__}: no group_matcher, so its blocks are not known")
    head_params = _classifier_params(model)
    # timm has no types for these.
    matcher = cast(Callable[..., Any], model.group_matcher)(coarse=False)
    params_of: dict[int, list[str]] = group_parameters(model, matcher)
    body_params = [[name for name in params_of[key] if name not in head_params] for key in sorted(params_of)]
    body_params = [names for names in body_params if names]
    modules = _modules_by_block(model, matcher, body_params)
    return Blocks(
        body=tuple(Block(tuple(names), tuple(modules[i])) for i, names in enumerate(body_params)),
        head=Block(tuple(sorted(head_params)), tuple(modules[-1])),
        decoder=frozenset(cast(Any, model).decoder_params()) if hasattr(model, "decoder_params") else frozenset(),
    )


def entries_of_last_blocks(model: nn.Module, count: int) -> frozenset[str]:
    """Names of the parameters and buffers of the ``count`` blocks next to the head.

    Raises:
        ConfigError: The model's blocks are not known.
    """
    modules = {name for block in split_blocks(model).body[-count:] for name in block.modules}
    params = {name for block in split_blocks(model).body[-count:] for name in block.params}
    return frozenset(name for name in model.state_dict() if name in params or name.rpartition(".")[0] in modules)


def _classifier_params(model: nn.Module) -> set[str]:
    classifier = cast(Any, model).get_classifier()
    heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
    owned = {id(p) for head in heads for p in head.parameters()}
    names = {name for name, param in model.named_parameters() if id(param) in owned}
    if not names:
        raise ConfigError(f"model {type(model).__name__}: its classifier has no parameters to train")
    return names


def _modules_by_block(model: nn.Module, matcher: Any, body_params: list[list[str]]) -> dict[int, list[str]]:
    """Leaf modules by index of their block, -1 for the head."""
    block_of_param = {name: index for index, names in enumerate(body_params) for name in names}
    leaves = {name: module for name, module in model.named_modules() if name and not any(module.children())}
    # Grouping parameters and leaves together shows which leaves share a group with which parameters.
    names = [*block_of_param, *leaves]
    together: dict[int, list[str]] = group_with_matcher(((name, None) for name in names), matcher)
    found: dict[int, list[str]] = {index: [] for index in (*range(len(body_params)), -1)}
    for key in sorted(together):
        owners = [block_of_param[name] for name in together[key] if name in block_of_param]
        for name in together[key]:
            if name in leaves:
                found[_block_of_leaf(name, leaves[name], block_of_param, max(owners, default=-1))].append(name)
    return found


def _block_of_leaf(name: str, leaf: nn.Module, block_of_param: dict[str, int], matched: int) -> int:
    """The block that owns the leaf's parameters; for a leaf without parameters, the block that its name matches."""
    params = [f"{name}.{param}" for param, _ in leaf.named_parameters()]
    return block_of_param.get(params[0], -1) if params else matched
