"""The plan of a strategy for each parameter of a model: made, applied, and checked against the model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strategies.errors import TrialError
from strategies.model.blocks import Blocks, split_blocks
from strategies.strategy import Strategy

HEAD = -1


@dataclass(frozen=True, slots=True)
class ParamPlan:
    """How one parameter is trained; its block is -1 for the head.

    ``from_epoch`` is the first epoch, counted from 0, that trains the parameter; None if no epoch does.
    """

    name: str
    block: int
    from_epoch: int | None
    lr_scale: float
    weight_decay: float

    def trained_in(self, epoch: int) -> bool:
        """Whether the epoch trains the parameter."""
        return self.from_epoch is not None and self.from_epoch <= epoch


@dataclass(frozen=True, slots=True)
class Plan:
    """A strategy made concrete for one model.

    Args:
        params: Every parameter, blocks first and the head last.
        awake: For each module that is in eval mode at first, or always: the epoch that puts it into train mode, or None
            for no epoch.
        num_blocks: Number of the model's blocks.
        depth: Number of blocks that are trained in the end.
    """

    params: tuple[ParamPlan, ...]
    awake: Mapping[str, int | None]
    num_blocks: int
    depth: int

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the parameters that are trained in some epoch."""
        return frozenset(p.name for p in self.params if p.from_epoch is not None)

    @property
    def turns(self) -> frozenset[int]:
        """The epochs after the first that begin by unfreezing parameters."""
        return frozenset(p.from_epoch for p in self.params if p.from_epoch)

    def eval_modules(self, epoch: int) -> frozenset[str]:
        """Names of the modules that an epoch trains in eval mode."""
        return frozenset(name for name, first in self.awake.items() if first is None or epoch < first)

    def manifest(self) -> list[dict[str, Any]]:
        """The plan as JSON: a record for each parameter."""
        return [asdict(param) for param in self.params]


def make_plan(model: nn.Module, strategy: Strategy) -> Plan:
    """Work out how ``strategy`` trains every parameter and module of a timm classifier.

    The learning-rate factor of a block follows from ``lr_by``. For ``decay`` it is ``layer_decay`` to the power of the
    block's distance from the head, which is at distance 0 (layer-wise decay as in BEiT, Bao et al. 2022). The distance
    is counted from the head, so frozen blocks below do not shift it. For ``thirds`` it is the scale of the third of the
    model in which the block lies (discriminative rates by groups, Howard and Ruder 2018). For ``gradient`` it is 1
    until :func:`rescale` changes it. Parameters of at most one dimension, and those that the model lists in
    ``no_weight_decay()``, get no weight decay.

    Raises:
        ConfigError: The strategy asks for more blocks than there are, or the model's blocks are unknown.
    """
    blocks = split_blocks(model)
    depth = strategy.blocks_trained(len(blocks))
    opened = _opened(len(blocks), depth, strategy)
    # BatchNorms of the head are new: they have no statistics worth keeping.
    new = {param.rpartition(".")[0] for param in blocks.head.params}
    batch_norms = {name for name, m in model.named_modules() if isinstance(m, _BatchNorm)} - new
    chosen = _chosen_parameters(model, strategy.parameters)
    undecayed = set(cast(Any, model).no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    tensors = dict(model.named_parameters())

    def _head_lr_scale(name: str) -> float:
        return strategy.decoder_lr_scale if name in blocks.decoder else strategy.head_lr_scale

    def plan_param(name: str, block: int) -> ParamPlan:
        fixed = name.rpartition(".")[0] in batch_norms and strategy.batch_norm == "frozen"
        decayed = tensors[name].ndim > 1 and name not in undecayed
        return ParamPlan(
            name=name,
            block=block,
            from_epoch=0 if block == HEAD else None if fixed or name not in chosen else opened.get(block),
            lr_scale=_head_lr_scale(name) if block == HEAD else _lr_scale(strategy, block, len(blocks)),
            weight_decay=strategy.weight_decay if decayed else 0.0,
        )

    params = [plan_param(name, index) for index, block in enumerate(blocks.body) for name in block.params]
    params += [plan_param(name, HEAD) for name in blocks.head.params]
    awake = _awake(model, blocks, opened)
    if strategy.batch_norm != "train":
        awake |= dict.fromkeys(batch_norms)
    return Plan(tuple(params), awake, len(blocks), depth)


def _lr_scale(strategy: Strategy, block: int, num_blocks: int) -> float:
    """The factor on a block's learning rate."""
    if strategy.lr_by == "decay":
        return strategy.layer_decay ** (num_blocks - block)
    if strategy.lr_by == "thirds":
        thirds = (strategy.lower_lr_scale, strategy.middle_lr_scale, strategy.upper_lr_scale)
        return thirds[3 * block // num_blocks]
    return 1.0


def trained_blocks(strategy: Strategy, num_blocks: int) -> range:
    """Positions, counted from the input, of the blocks that are trained in the end."""
    depth = strategy.blocks_trained(num_blocks)
    start = {"head": num_blocks - depth, "middle": (num_blocks - depth) // 2, "input": 0}[strategy.depth_from]
    return range(start, start + depth)


def _opened(num_blocks: int, depth: int, strategy: Strategy) -> dict[int, int]:
    """The first epoch that trains each of the trained blocks.

    With ``unfreeze_epochs`` the block next to the head comes first and the furthest last, spread evenly over that many
    epochs (gradual unfreezing, Howard and Ruder 2018).
    """
    from_the_head = reversed(trained_blocks(strategy, num_blocks))
    return {block: round(strategy.unfreeze_epochs * k / depth) for k, block in enumerate(from_the_head)}


def _chosen_parameters(model: nn.Module, kind: str) -> set[str]:
    """Names of the parameters that the strategy's ``parameters`` allows to train; the head's are trained anyway."""
    names = {name for name, _ in model.named_parameters()}
    if kind == "all":
        return names
    # Normalisations have no common class, but in torch and timm all their names contain Norm.
    norms = {name for name, module in model.named_modules() if "Norm" in type(module).__name__}
    of_norms = {name for name in names if name.rpartition(".")[0] in norms}
    biases = {name for name in names if name.rpartition(".")[2] == "bias"}
    updates = {name for name in names if ".lora_" in name}
    return {"norms": of_norms, "biases": biases, "norms_and_biases": of_norms | biases, "lora": updates}[kind]


def _awake(model: nn.Module, blocks: Blocks, opened: Mapping[int, int]) -> dict[str, int | None]:
    """For each module of the body that is frozen at first: the epoch that puts it into train mode, or None."""
    awake: dict[str, int | None] = {
        name: opened.get(index) for index, block in enumerate(blocks.body) for name in block.modules
    }
    leaves = [name for block in (*blocks.body, blocks.head) for name in block.modules]
    for name, module in model.named_modules():
        # Attention and timm's BatchNorm read their own ``training`` flag but are no leaves: they follow their parts.
        parts = [leaf for leaf in leaves if leaf.startswith(f"{name}.")] if any(module.children()) else []
        if parts and all(part in awake for part in parts):
            epochs = [first for part in parts if (first := awake[part]) is not None]
            awake[name] = min(epochs, default=None)
    return {name: first for name, first in awake.items() if first != 0}


def freeze(model: nn.Module, plan: Plan, epoch: int = 0) -> None:
    """Set ``requires_grad`` of every parameter as planned for an epoch; frozen parameters lose their gradient."""
    tensors = dict(model.named_parameters())
    for param in plan.params:
        tensors[param.name].requires_grad_(param.trained_in(epoch))
        if not param.trained_in(epoch):
            # An optimizer skips a parameter without a gradient, but moves one whose gradient is zero.
            tensors[param.name].grad = None


def set_train_mode(model: nn.Module, plan: Plan, epoch: int = 0) -> None:
    """Put the model into train mode, and everything that is frozen in that epoch into eval mode.

    Call this function instead of ``model.train()``, with which a frozen BatchNorm updates its statistics
    (pytorch#66073) and a frozen dropout drops.
    """
    model.train()
    asleep = plan.eval_modules(epoch)
    for name, module in model.named_modules():
        if name in asleep:
            module.training = False


def param_groups(model: nn.Module, plan: Plan, by_block: bool = False) -> list[dict[str, Any]]:
    """Optimizer groups of all parameters that some epoch trains: one for each pair of rate factor and weight decay.

    Each group has an ``lr_scale``, by which timm's schedulers multiply the rate at every step.

    Args:
        model: The planned model.
        plan: Its plan.
        by_block: Whether each block has groups of its own, as :func:`rescale` needs.
    """
    tensors = dict(model.named_parameters())
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for param in plan.params:
        if param.from_epoch is not None:
            key = (param.lr_scale, param.weight_decay, param.block if by_block else HEAD)
            groups.setdefault(key, []).append(tensors[param.name])
    return [
        {"params": params, "lr_scale": lr_scale, "weight_decay": weight_decay, "block": block}
        for (lr_scale, weight_decay, block), params in groups.items()
    ]


def rescale(plan: Plan, optimizer: torch.optim.Optimizer, factors: Mapping[int, float]) -> Plan:
    """Change the factors on blocks' learning rates, from the next step of the schedule on.

    Args:
        plan: The present plan; it is not changed.
        optimizer: With groups by block.
        factors: New factors by block; other blocks keep theirs.

    Returns:
        The new plan.
    """
    for group in optimizer.param_groups:
        group["lr_scale"] = factors.get(group["block"], group["lr_scale"])
    return replace(plan, params=tuple(replace(p, lr_scale=factors.get(p.block, p.lr_scale)) for p in plan.params))


def check_applied(model: nn.Module, plan: Plan, optimizer: torch.optim.Optimizer, epoch: int = 0) -> None:
    """Check, just before a step, that model and optimizer are as planned for an epoch.

    The check covers ``requires_grad``, membership in the optimizer, weight decay and the learning rate's ratio to the
    head's for each parameter, and eval mode for each module that the plan puts into it.

    Raises:
        TrialError: Something differs; the message names the first few differences.
    """
    group_of = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    tensors = dict(model.named_parameters())
    unit = next(group_of[id(tensors[p.name])]["lr"] / p.lr_scale for p in plan.params if p.block == HEAD)
    asleep = plan.eval_modules(epoch)
    wrong: list[str] = []
    for param in plan.params:
        tensor, group = tensors[param.name], group_of.get(id(tensors[param.name]))
        trained = param.trained_in(epoch)
        if tensor.requires_grad != trained or (group is not None) != (param.from_epoch is not None):
            wrong.append(f"{param.name} should be {'trained' if trained else 'frozen'}")
        elif group is not None and not _close(group["lr"], unit * param.lr_scale):
            wrong.append(f"{param.name} has lr {group['lr']:g}, planned {unit * param.lr_scale:g}")
        elif group is not None and group["weight_decay"] != param.weight_decay:
            wrong.append(f"{param.name} has weight decay {group['weight_decay']:g}, planned {param.weight_decay:g}")
    wrong += [f"{n} should be in eval mode" for n, m in model.named_modules() if n in asleep and m.training]
    if wrong:
        raise TrialError(f"the strategy was not applied as planned: {_first(wrong)}")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _first(items: Sequence[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return "; ".join(items[:count]) + more
