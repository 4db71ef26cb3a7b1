"""A timm classifier's forward pass as a graph that can be cut at any block."""

import logging
import operator
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from strategies import Blocks, split_blocks
from trainers.modes import modes_kept
from trainers.private_apis import write_count
from trainers.reuse.rows import CutError, Description, describe, pack, same, tensors_in

log = logging.getLogger(__name__)

#: The block of operations without parameters that do the same in both modes: they may lie wherever their inputs lie.
FREE = -1

_SAMPLES = (3, 2)
# How far an image's values may move, as a share of their norm, in a batch of another size: kernels then round
# differently, most of all in TF32 and bf16.
_ROUNDING = 0.05


@dataclass(frozen=True, slots=True)
class ModeGraph:
    """The forward pass in train or in eval mode.

    Args:
        graph: Calls of modules that lie in one block each, and the model's operations between them.
        own: By name of a node, its block, counted from the input; or :data:`FREE`; or the number of blocks, for the
            head and for operations that are random in train mode.
        level: By name of a node, the highest ``own`` among itself and all that it depends on.
        idle: Names of the nodes that return their input, as dropout at rate 0 does.
    """

    graph: fx.Graph
    own: Mapping[str, int]
    level: Mapping[str, int]
    idle: frozenset[str]


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """The graphs that :func:`trace_blocks` found.

    Args:
        num_blocks: Blocks of the model, without the head.
        train: The forward pass of the model in train mode.
        eval: The forward pass in eval mode.
        agreed: Names of the nodes with the same value in both, as long as no block is in train mode.
        values: By name of a node, the structure of its value, or the reason why it has none.
    """

    num_blocks: int
    train: ModeGraph
    eval: ModeGraph
    agreed: frozenset[str]
    values: Mapping[str, Description | CutError]


def trace_blocks(model: nn.Module, image_shape: tuple[int, int, int]) -> BlockGraph:
    """Trace a timm classifier by torch.fx down to modules that lie in one block each.

    Only modules that hold several blocks, such as the model itself, are traced through. All others are called as they
    are, with their hooks, their ``training`` flag and any Python code in them. The graph names parameters and modules
    instead of holding them, so that one graph serves all models of an architecture with the same frozen tensors. Values
    that a traced forward pass reads from the model, such as ``drop_rate``, are fixed in the graph.

    It takes about as long as ten forward passes of an image. The model's modes and torch's random state stay as they
    were. Call it under the autocast and on the device in which the model will run, and while no other thread runs a
    model: torch.fx changes how modules are called until it is done.

    Args:
        model: A timm classifier.
        image_shape: (C, H, W) of its images.

    Raises:
        CutError: The forward pass of the model itself cannot be traced.
        ConfigError: The model's blocks are not known.
    """
    blocks = split_blocks(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((sum(_SAMPLES), *image_shape), generator=generator)
    # The first image is in both samples.
    samples = images[: _SAMPLES[0]], torch.cat([images[:1], images[_SAMPLES[0] + 1 :]])
    first, second = (sample.to(device, memory_format=torch.channels_last) for sample in samples)
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cuda), modes_kept(model):
        graphs = {}
        for training in (True, False):
            model.train(training)
            graphs[training] = _traced(model, blocks)
        model.eval()
        owners = _Owners(model, blocks)
        train, evaluation, other = (_Observer(model, graphs[training], owners) for training in (True, False, False))
        for observer, sample in ((train, first), (evaluation, first), (other, second)):
            observer.observe(sample)
    names = evaluation.values.keys() & train.values.keys()
    return BlockGraph(
        num_blocks=len(blocks),
        train=train.found(),
        eval=evaluation.found(),
        agreed=frozenset(name for name in names if same(train.values[name], evaluation.values[name])),
        values={name: _described(value, other.values[name]) for name, value in evaluation.values.items()},
    )


def _described(first: Any, second: Any) -> Description | CutError:
    """The structure of a value, or the reason why it has none: most values never cross a cut, so that is no error."""
    try:
        description = describe(first, second, _SAMPLES)
    except CutError as error:
        return error
    for one, other in zip(pack(description, first), pack(description, second), strict=True):
        alone, moved = one[0].double(), one[0].double() - other[0].double()
        if moved.norm() > _ROUNDING * alone.norm():
            return CutError("what belongs to an image depends on which others are in the batch")
    return description


class _Forward(nn.Module):
    """The model with images as its only argument: for an optional argument torch.fx would make a node of None."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """The model's outputs for ``images``, (N, C, H, W)."""
        return self.model(images)


class _Tracer(fx.Tracer):
    """Traces through ``through`` and the root only, and keeps a stack of the modules that it is in."""

    def __init__(self, through: Collection[nn.Module]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]
        self.stack: list[nn.Module] = []
        self._through = through

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as it is."""
        return m not in self._through

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Of a comparison of number formats, that they are equal: a cut that this makes wrong is found when checked.

        Transformers' models convert images to the format of their weights, which the images have.
        """
        node = obj.node
        if node.target in (operator.eq, operator.ne) and any(isinstance(arg, torch.dtype) for arg in node.args):
            return node.target is operator.eq
        return super().to_bool(obj)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node for a leaf module, else the traced forward pass."""
        self.stack.append(m)
        output = super().call_module(m, forward, args, kwargs)
        # Not in a finally: after a failure the caller reads from the stack in which module tracing failed.
        self.stack.pop()
        return output


def _traced(model: nn.Module, blocks: Blocks) -> fx.Graph:
    """The graph of the model in its present mode, without nodes that its output does not depend on."""
    through = _holders(model, blocks) | {model}
    while True:
        tracer = _Tracer(through)
        try:
            graph = tracer.trace(_Forward(model))
            break
        except Exception as error:  # forward passes raise errors of any kind on the tracer's proxies
            failed = tracer.stack[-1] if tracer.stack else model
            lines = [*str(error).splitlines(), ""]
            reason = f"{type(error).__name__}: {lines[0]}"
            if failed is model or failed not in through:
                raise CutError(f"model {type(model).__name__} cannot be traced by torch.fx: {reason}") from error
            log.debug("%s is not cut inside: %s", type(failed).__name__, reason)
            through = through - {failed}
    prefix = "model."
    for node in graph.nodes:
        if node.op in {"call_module", "get_attr"}:
            if not node.target.startswith(prefix):
                raise CutError(f"model {type(model).__name__} makes tensors of its own in its forward pass")
            node.target = node.target.removeprefix(prefix)
    _drop_unused(graph)
    # Functions of torch's tracing refer to each other and to the tracer, which would hold the model until a collection.
    vars(tracer).clear()
    return graph


def _drop_unused(graph: fx.Graph) -> None:
    # Not eliminate_dead_code(): it keeps assertions, whose shapes would have to cross the cut.
    for node in reversed(list(graph.nodes)):
        in_place = node.op == "call_method" and str(node.target).endswith("_")
        if not node.users and not in_place and node.op not in {"placeholder", "output"}:
            graph.erase_node(node)


def _holders(model: nn.Module, blocks: Blocks) -> set[nn.Module]:
    """The modules that hold parameters of several blocks, and those that hold the classifier and more."""
    block_of = _block_of_param(model, blocks)
    found = cast(Any, model).get_classifier()
    classifiers = found if isinstance(found, tuple | list) else (found,)
    inside = {module for classifier in classifiers for module in classifier.modules()}
    opaque = tuple(get_notrace_modules())  # type: ignore[no-untyped-call]
    holders = set()
    for module in model.modules():
        held = {block_of[id(param)] for param in module.parameters()}
        holds_head = held == {len(blocks)} and module not in inside
        if (len(held) > 1 or holds_head) and any(module.children()) and type(module) not in opaque:
            holders.add(module)
    return holders


def _block_of_param(model: nn.Module, blocks: Blocks) -> dict[int, int]:
    """The block of each parameter, by id, because shared parameters have several names; the head's if in no block."""
    by_name = {name: index for index, block in enumerate((*blocks.body, blocks.head)) for name in block.params}
    return {id(param): by_name.get(name, len(blocks)) for name, param in model.named_parameters()}


class _Owners:
    """The blocks of module calls."""

    def __init__(self, model: nn.Module, blocks: Blocks) -> None:
        self.num_blocks = len(blocks)
        self._modules = dict(model.named_modules())
        self._block_of_param = _block_of_param(model, blocks)
        every = enumerate((*blocks.body, blocks.head))
        self._block_of_leaf = {name: index for index, block in every for name in block.modules}

    def of_tensor(self, tensor: Any) -> int:
        """The block of a parameter; buffers have no block."""
        return self._block_of_param.get(id(tensor), FREE)

    def of_call(self, name: str, args: Any, kwargs: Any) -> int:
        """The block of a module's parameters, or a later block if the module has a part there that train mode changes.

        Examples are dropout behind the position embedding, which timm's groups give to no block, and modules without
        parameters: they do not have the modes of the blocks in front.
        """
        module = self._modules[name]
        own = max((self.of_tensor(param) for param in module.parameters()), default=FREE)
        inside = ((f"{name}.{sub}".rstrip("."), part) for sub, part in module.named_modules())
        leaves = {
            path: self._block_of_leaf.get(path, self.num_blocks) for path, part in inside if not any(part.children())
        }
        awake = {path: block for path, block in leaves.items() if block > own}
        if not awake or _is_steady(module, name, awake, args, kwargs):
            return own
        return max(awake.values())


def _is_steady(module: nn.Module, name: str, awake: Collection[str], args: Any, kwargs: Any) -> bool:
    """Whether a module gives the same values with its leaves ``awake`` in train mode, and draws no random numbers."""
    trial = deepcopy(module)
    outputs = []
    for training in (False, True):
        for sub, part in trial.named_modules():
            path = f"{name}.{sub}".rstrip(".")
            part.training = training and any(leaf == path or leaf.startswith(f"{path}.") for leaf in awake)
        before = _random_state(args)
        outputs.append(trial(*_thawed(_copied(args)), **_thawed(_copied(kwargs))))
        if not torch.equal(before, _random_state(args)):
            return False
    return same(*outputs)


def _random_state(values: Any) -> Tensor:
    """The state of the generators that a call on these values may draw from."""
    states = [torch.get_rng_state()]
    states += [torch.cuda.get_rng_state(device) for device in {t.device for t in tensors_in(values) if t.is_cuda}]
    return torch.cat(states)


def _copied(values: Any) -> Any:
    # Modules may write to their inputs.
    return fx.node.map_aggregate(values, lambda value: value.clone() if isinstance(value, Tensor) else value)


def _thawed(values: Any) -> Any:
    """The same values with plain lists and dicts, which torch.fx makes immutable."""
    if isinstance(values, dict):
        return {key: _thawed(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_thawed(value) for value in values]
    return tuple(map(_thawed, values)) if type(values) is tuple else values


class _Observer(fx.Interpreter):
    """Runs a graph on a model and records the value and the block of every node."""

    def __init__(self, model: nn.Module, graph: fx.Graph, owners: _Owners) -> None:
        super().__init__(model, graph=graph)
        self.values: dict[str, Any] = {}
        self._owners = owners
        self._own: dict[str, int] = {}
        self._idle: set[str] = set()

    def observe(self, images: Tensor) -> None:
        """Run the graph once.

        Raises:
            CutError: The graph fails, but the model does not.
        """
        try:
            self.run(images)
        except Exception as error:  # a module may need an argument that torch.fx does not pass on
            reason = f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"
            raise CutError(f"model {type(self.module).__name__} does not run as a graph: {reason}") from error

    def call_module(self, target: fx.node.Target, args: tuple[fx.node.Argument, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs of a module, which gets plain lists, because it may write to them."""
        return super().call_module(target, _thawed(args), _thawed(kwargs))

    def run_node(self, n: fx.Node) -> Any:
        """The value of the node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        own = self._owners.of_call(str(n.target), args, kwargs) if n.op == "call_module" else FREE
        given = tensors_in((args, kwargs))
        counts = [write_count(tensor) for tensor in given]
        before = _random_state(given)
        value = super().run_node(n)
        if n.op == "get_attr":
            own = self._owners.of_tensor(value)
        elif not torch.equal(before, _random_state(given)):
            own = self._owners.num_blocks
        if any(value is tensor and write_count(tensor) == old for tensor, old in zip(given, counts, strict=True)):
            self._idle.add(n.name)
        self.values[n.name] = value
        self._own[n.name] = own
        return value

    def found(self) -> ModeGraph:
        """The graph with the recorded blocks."""
        level: dict[str, int] = {}
        for node in self.graph.nodes:
            level[node.name] = max([self._own[node.name], *(level[source.name] for source in node.all_input_nodes)])
        return ModeGraph(self.graph, self._own, level, frozenset(self._idle))
