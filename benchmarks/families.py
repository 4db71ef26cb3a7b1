"""Which of timm's model families Unfreeze trains, and which it cuts exactly: a table with one model a family.

``python -m benchmarks.families`` takes a small model of each family, which is a module of timm, with random weights. It
is cut in front of its second, its middle and its last block and of its head. A cut is exact if one training step in two
parts gives the outputs, gradients and statistics of a step of the whole model, bit for bit. A model without a cut is
trained as well, but its frozen part is computed anew in each epoch.
"""

import argparse
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.machine import machine, write_json
from strategies import Strategy, freeze, make_plan, set_train_mode, split_blocks
from trainers import create_classifier
from trainers.reuse import Cut, CutError, cut_at, trace_blocks

QUICK = ("resnet", "vision_transformer", "convnext", "dpn")
# Parts of names that small models have, the smallest first.
_SMALL = ["test_", "zepto", "atto", "femto", "pico", "nano", "xx", "tiny", "_t", "_xs", "small", "_s", "18", "b0", "50"]
_IMAGES, _CLASSES = 2, 5
# The gradients of a step are held for each of four depths.
_MOST_PARAMETERS = 300_000_000
# Tried before the size that a model was made for.
_SIDES = (64, 128)


@dataclass(frozen=True, slots=True)
class Family:
    """What was found of a family.

    Args:
        name: Of timm's module.
        model: The model that stands for it.
        side: Pixels of a side of its images.
        blocks: Blocks that can be frozen; 0 if the model cannot be trained.
        cuts: Cuts that were tried.
        exact: Of these, those that are exact.
        reason: Why a cut is not there or not exact, or why the model cannot be trained; empty if all cuts are exact.
    """

    name: str
    model: str
    side: int = 0
    blocks: int = 0
    cuts: int = 0
    exact: int = 0
    reason: str = ""


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parse(arguments)
    names = options.families or (QUICK if options.quick else timm.models.list_modules())
    found = []
    for name in names:
        found.append(examined(name))
        print(f"{name}: {found[-1].exact} of {found[-1].cuts} cuts exact {found[-1].reason}".rstrip(), flush=True)
    show(found)
    write_json({"machine": machine(), "families": [asdict(family) for family in found]}, options.json)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=timm.models.list_modules(), metavar="NAME", help="only these")
    parser.add_argument("--quick", action="store_true", help="a few families, to see that it works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args(arguments)


def small_model(family: str) -> str:
    """A model of a family whose name says that it is small, or else the one with the shortest name."""

    def size(name: str) -> tuple[int, int, str]:
        return next((k for k, part in enumerate(_SMALL) if part in name), len(_SMALL)), len(name), name

    return min(timm.list_models(module=family), key=size)


def examined(family: str) -> Family:
    """Train and cut a small model of a family, at few pixels if it takes them, else at its own size."""
    name = small_model(family)
    if (size := parameters_of(name)) > _MOST_PARAMETERS:
        return Family(family, name, reason=f"not tried: {size / 1e6:.0f} million parameters")
    own = timm.get_pretrained_cfg(name).input_size[-1]
    reason = ""
    for side in dict.fromkeys((*_SIDES, own)):
        try:
            return cut_exactly(family, name, side)
        except Exception as error:  # any error of any model is what the table is about
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return Family(family, name, own, reason=reason)


def parameters_of(name: str) -> int:
    """Number of a model's parameters, counted without making them; 0 where timm cannot do that."""
    try:
        with torch.device("meta"):
            return sum(param.numel() for param in timm.create_model(name).parameters())
    except Exception:  # of any model
        return 0


def cut_exactly(family: str, name: str, side: int) -> Family:
    """Train a model whole, and in two parts at each cut."""
    torch.manual_seed(0)
    model = create_classifier(name, _CLASSES, side).to(memory_format=torch.channels_last)
    # Statistics as of training: at 0 and 1, eval mode hides what is wrong with them.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = torch.randn(_IMAGES, 3, side, side).contiguous(memory_format=torch.channels_last)
    blocks = len(split_blocks(model))
    depths = sorted({blocks - 1, blocks // 2, 1, 0} & set(range(blocks)))
    whole = {depth: step(model, depth, images, None) for depth in depths}
    try:
        graph = trace_blocks(model, (3, side, side))
    except CutError as error:
        return Family(family, name, side, blocks, len(depths), 0, str(error))
    reasons = []
    for depth, expected in whole.items():
        try:
            found = step(model, depth, images, cut_at(graph, model, blocks - depth))
        except CutError as error:
            reasons.append(str(error))
            continue
        differs = [key for key, value in expected.items() if key not in found or not torch.equal(value, found[key])]
        if differs:
            reasons.append(f"at depth {depth} another {differs[0]}")
    exact, reason = len(depths) - len(reasons), "; ".join(dict.fromkeys(reasons))
    return Family(family, name, side, blocks, len(depths), exact, reason)


def step(model: nn.Module, depth: int, images: Tensor, cut: Cut | None) -> dict[str, Tensor]:
    """What a training step of a copy gives: output, gradients, and buffers, among them BatchNorm's statistics."""
    model = deepcopy(model)
    plan = make_plan(model, Strategy(depth=depth))
    freeze(model, plan)
    set_train_mode(model, plan)
    torch.manual_seed(1)
    found: Any = model(images.clone()) if cut is None else cut.suffix(model, cut.prefix(model, images.clone()))
    outputs = found if isinstance(found, Tensor) else torch.stack(tuple(found))
    outputs.square().mean().backward()  # type: ignore[no-untyped-call]
    of_step = {f"gradient of {name}": param.grad for name, param in model.named_parameters() if param.grad is not None}
    return of_step | {f"buffer {name}": buffer for name, buffer in model.named_buffers()} | {"output": outputs.detach()}


def show(found: list[Family]) -> None:
    exact = sum(family.cuts == family.exact > 0 for family in found)
    untrained = sum(family.blocks == 0 for family in found)
    table = Table(
        title=f"{len(found)} families: {exact} are cut exactly, {untrained} cannot be trained",
        caption="cuts in front of the second, the middle and the last block and of the head",
    )
    for name in ("family", "model", "px", "blocks", "exact cuts", "why not all"):
        table.add_column(name, overflow="fold")
    for family in found:
        cuts = f"{family.exact} of {family.cuts}"
        table.add_row(family.name, family.model, str(family.side), str(family.blocks), cuts, family.reason)
    Console().print(table)


if __name__ == "__main__":
    main()
