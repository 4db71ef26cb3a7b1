"""What a strategy means for each parameter of a model, applying it, and proving that it was applied."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from strategies.blocks import Blocks, split_blocks
from strategies.errors import TrialError
from strategies.strategy import Strategy

HEAD = -1


@dataclass(frozen=True, slots=True)
class ParamPlan:
    """One parameter: its block (``-1`` is the head), and how it is trained."""

    name: str
    block: int
    trainable: bool
    lr_scale: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A strategy made concrete for one model."""

    params: tuple[ParamPlan, ...]
    eval_modules: frozenset[str]
    num_blocks: int
    depth: int

    @property
    def trainable(self) -> frozenset[str]:
        """Names of the parameters that are trained."""
        return frozenset(p.name for p in self.params if p.trainable)

    def manifest(self) -> list[dict[str, Any]]:
        """The plan as JSON: a record for each parameter."""
        return [asdict(param) for param in self.params]


def make_plan(model: nn.Module, strategy: Strategy) -> Plan:
    """Work out what ``strategy`` asks of every parameter and module of a timm classifier.

    The learning-rate factor of a block is ``layer_decay`` to the power of its distance from the head, the head being at
    distance 0 (layer-wise decay as in BEiT, Bao et al. 2022). It is counted from the head, so what is frozen below does
    not shift it. Parameters of one dimension or none, and those that the model lists in ``no_weight_decay()``, get no
    weight decay.

    Raises:
        ConfigError: The strategy asks for more blocks than there are, or the model's blocks are unknown.
    """
    blocks = split_blocks(model)
    depth = strategy.blocks_trained(len(blocks))
    first_trained = len(blocks) - depth
    norms = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    undecayed = set(cast(Any, model).no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    tensors = dict(model.named_parameters())

    def plan_param(name: str, block: int) -> ParamPlan:
        in_norm = name.rpartition(".")[0] in norms
        trainable = block == HEAD or (block >= first_trained and not (in_norm and strategy.batch_norm == "frozen"))
        distance = 0 if block == HEAD else len(blocks) - block
        decayed = tensors[name].ndim > 1 and name not in undecayed
        return ParamPlan(
            name=name,
            block=block,
            trainable=trainable,
            lr_scale=strategy.layer_decay**distance,
            weight_decay=strategy.weight_decay if decayed else 0.0,
        )

    params = [plan_param(name, index) for index, block in enumerate(blocks.body) for name in block.params]
    params += [plan_param(name, HEAD) for name in blocks.head.params]
    evaluated = _eval_modules(model, blocks, first_trained, norms, strategy.batch_norm)
    return Plan(tuple(params), evaluated, len(blocks), depth)


def _eval_modules(
    model: nn.Module, blocks: Blocks, first_trained: int, norms: set[str], batch_norm: str
) -> frozenset[str]:
    frozen = {name for block in blocks.body[:first_trained] for name in block.modules}
    leaves = [name for block in (*blocks.body, blocks.head) for name in block.modules]
    for name, module in model.named_modules():
        # Attention and timm's BatchNorm read their own ``training`` flag but are no leaves: they go with their parts.
        parts = [leaf for leaf in leaves if leaf.startswith(f"{name}.")] if any(module.children()) else []
        if parts and frozen.issuperset(parts):
            frozen.add(name)
    return frozenset(frozen | norms if batch_norm != "train" else frozen)


def freeze(model: nn.Module, plan: Plan) -> None:
    """Set ``requires_grad`` of every parameter as planned."""
    tensors = dict(model.named_parameters())
    for param in plan.params:
        tensors[param.name].requires_grad_(param.trainable)


def set_train_mode(model: nn.Module, plan: Plan) -> None:
    """Put the model into train mode with everything frozen in eval mode.

    Call it instead of ``model.train()``, which would let frozen BatchNorm update its statistics (pytorch#66073) and
    frozen dropout drop.
    """
    model.train()
    for name, module in model.named_modules():
        if name in plan.eval_modules:
            module.training = False


def param_groups(model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """Optimizer groups of the trained parameters, one for each pair of rate factor and weight decay.

    Each group carries ``lr_scale``, which timm's schedulers multiply in at every step.
    """
    tensors = dict(model.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for param in plan.params:
        if param.trainable:
            groups.setdefault((param.lr_scale, param.weight_decay), []).append(tensors[param.name])
    return [
        {"params": params, "lr_scale": lr_scale, "weight_decay": weight_decay}
        for (lr_scale, weight_decay), params in groups.items()
    ]


def check_applied(model: nn.Module, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    """Prove that model and optimizer stand as planned, just before a step.

    Compares, for each parameter, ``requires_grad``, membership in the optimizer, weight decay and the learning rate's
    ratio to the head's; for each module planned so, that it is in eval mode.

    Raises:
        TrialError: Something differs; the message names the first few.
    """
    group_of = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    tensors = dict(model.named_parameters())
    head_lr = next(group_of[id(tensors[p.name])]["lr"] for p in plan.params if p.block == HEAD)
    wrong: list[str] = []
    for param in plan.params:
        tensor, group = tensors[param.name], group_of.get(id(tensors[param.name]))
        if tensor.requires_grad != param.trainable or (group is not None) != param.trainable:
            wrong.append(f"{param.name} should be {'trained' if param.trainable else 'frozen'}")
        elif group is not None and not _close(group["lr"], head_lr * param.lr_scale):
            wrong.append(f"{param.name} has lr {group['lr']:g}, planned {head_lr * param.lr_scale:g}")
        elif group is not None and group["weight_decay"] != param.weight_decay:
            wrong.append(f"{param.name} has weight decay {group['weight_decay']:g}, planned {param.weight_decay:g}")
    wrong += [f"{n} should be in eval mode" for n, m in model.named_modules() if n in plan.eval_modules and m.training]
    if wrong:
        raise TrialError(f"the strategy was not applied as planned: {_first(wrong)}")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _first(items: Sequence[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return "; ".join(items[:count]) + more
