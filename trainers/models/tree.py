"""The blocks of any model, found in the tree of its modules: stages are divided into their blocks, blocks are not.

The rule, for what holds parameters:

- The model itself is divided into its children, in the order in which they were registered.
- A container (Sequential, ModuleList, ModuleDict) is divided if it holds several weights, as a stage of residual blocks
  and the plain layers of VGG do; a convolution with its norm is one block.
- Any other module is divided only if a chain lies somewhere in it: a container of two or more modules of one class,
  each with two or more weights. Encoders and stages hold chains; residual blocks and encoder layers do not.
- What is not divided is a block. Norms, tokens and embeddings that stand alone belong to the block in front of them, or
  to the first.
"""

from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Exceptions: classes that are one block, whatever is in them.
_WHOLE = {"MobileViTLayer", "LevitResidualLayer"}


def blocks_by_rule(model: nn.Module, head: nn.Module) -> list[list[str]]:
    """Names of the modules and parameters of each block, from the input on.

    Args:
        model: Any model.
        head: Its classifier, which belongs to no block.
    """
    heads = set(head.modules())
    blocks: list[list[str]] = []
    waiting: list[str] = []
    for name, has_weight in _pieces("", model, heads):
        if has_weight:
            blocks.append([*waiting, name])
            waiting = []
        else:
            (blocks[-1] if blocks else waiting).append(name)
    return blocks


def _pieces(name: str, module: nn.Module, heads: set[nn.Module]) -> Iterator[tuple[str, bool]]:
    """Modules and parameters that are not divided, and whether there is a weight in them besides the head's."""
    if name and not _is_divided(module, heads):
        yield name, _weights(module, heads) > 0
        return
    below = f"{name}." if name else ""
    yield from ((f"{below}{own}", False) for own, _ in module.named_parameters(recurse=False))
    for own, child in module.named_children():
        if child not in heads and _has_parameters(child):
            yield from _pieces(f"{below}{own}", child, heads)


def _is_divided(module: nn.Module, heads: set[nn.Module]) -> bool:
    if isinstance(module, _CONTAINERS):
        return _weights(module, heads) > 1
    return type(module).__name__ not in _WHOLE and any(_is_chain(inner) for inner in module.modules())


def _is_chain(module: nn.Module) -> bool:
    parts = [child for child in module.children() if _has_parameters(child)]
    return (
        isinstance(module, _CONTAINERS)
        and len(parts) > 1
        and len({type(part) for part in parts}) == 1
        and not isinstance(parts[0], _CONTAINERS)
        and all(_weights(part, set()) > 1 for part in parts)
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _weights(module: nn.Module, heads: set[nn.Module]) -> int:
    """The number of layers with a weight of two or more axes, without the head's."""
    layers = (part for part in module.modules() if part not in heads)
    return sum(any(param.ndim > 1 for param in layer.parameters(recurse=False)) for layer in layers)
