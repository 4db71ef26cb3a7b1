"""A timm classifier in two parts: the frozen part, and the part that is trained on its outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainers.modes import modes_kept
from trainers.reuse.graph import FREE, BlockGraph, ModeGraph
from trainers.reuse.rows import CutError, Description, RowLayout, Rows, layouts_in, pack, same, tensors_in, unpack


@dataclass(frozen=True, slots=True)
class Cut:
    """The forward pass of a timm classifier in two parts, the prefix in front of block ``k`` and the suffix.

    Both take the model, or any model that differs from the traced model only in its tensors, and call its own modules:
    code that trains, freezes, moves or saves the model needs to know nothing of the cut.

    Args:
        k: Number of frozen blocks.
        rows: The layouts of the prefix's outputs for an image.
        state_names: Parameters and buffers that the prefix depends on, named as in the model.
        crossing: Names, in the graph, of all values that cross the cut.
    """

    k: int
    rows: tuple[RowLayout, ...]
    state_names: tuple[str, ...]
    crossing: tuple[str, ...]
    _values: tuple[Description, ...]
    _prefix: Callable[..., tuple[Any, ...]]
    _suffix: Mapping[bool, Callable[..., Any]]

    @property
    def row_bytes(self) -> int:
        """Bytes of an image's rows in the store."""
        return sum(layout.bytes for layout in self.rows)

    @property
    def description(self) -> str:
        """Names and types of the values that cross: cuts of a model with the same description give the same rows."""
        shapes = (
            f"{'x'.join(map(str, layout.shape))} {str(layout.dtype).removeprefix('torch.')}" for layout in self.rows
        )
        return f"{', '.join(self.crossing)}: {', '.join(shapes)}"

    @torch.no_grad()
    def prefix(self, model: nn.Module, images: Tensor) -> Rows:
        """Compute the frozen part, in eval mode without regard to the model's mode, and without gradient.

        Args:
            model: The classifier.
            images: (B, C, H, W) as the model takes them.

        Returns:
            Tensors (B, *shape), one for each of ``rows``.
        """
        with modes_kept(model):
            model.eval()
            return tuple(pack(self._values, self._prefix(model, images)))

    def suffix(self, model: nn.Module, rows: Sequence[Tensor], run: Callable[..., Any] | None = None) -> Any:
        """Compute the rest, with each of the model's modules in its present mode.

        Args:
            model: The classifier.
            rows: Tensors (B, *shape), one for each of ``rows``; they may be written to.
            run: If given, called with a function, the model and values; returns the function's result for these.

        Returns:
            What the model returns: logits (B, num_classes).
        """
        function, values = self._suffix[model.training], unpack(self._values, rows)
        return function(model, *values) if run is None else run(function, model, *values)


def cut_at(graph: BlockGraph, model: nn.Module, k: int) -> Cut:
    """Cut a classifier in front of block ``k``, at the point with the fewest bytes to store.

    Operations behind the last frozen block that have no parameters and nothing random, such as pooling, are moved into
    the prefix up to the point where the fewest bytes cross; among equal ones the furthest. With all blocks frozen this
    leaves the classifier alone, on pooled features. Frozen blocks that depend on what is trained, or on what is random
    in train mode, are in the suffix.

    Args:
        graph: What :func:`trace_blocks` found.
        model: The traced model, or one with the same frozen tensors.
        k: How many blocks, from the input, are frozen.

    Raises:
        CutError: No block is frozen, or none can be computed once and for all, or a value that would cross depends on
            which images are in a batch.
    """
    if not 0 < k <= graph.num_blocks:
        raise CutError(f"cannot cut in front of block {k} of {graph.num_blocks}: no block would be frozen")
    options = {
        training: {_crossing(mode.graph, inside): inside for inside in _prefixes(graph, mode, k)}
        for training, mode in ((True, graph.train), (False, graph.eval))
    }
    names, values = _cheapest(model, graph, k, [names for names in options[False] if names in options[True]])
    inside = options[False][names]
    suffix = {
        training: _function(model, mode.graph, options[training][names], names, behind=True)
        for training, mode in ((True, graph.train), (False, graph.eval))
    }
    return Cut(
        k=k,
        rows=tuple(layouts_in(values)),
        state_names=_state_names(model, graph.eval.graph, inside),
        crossing=names,
        _values=values,
        _prefix=_function(model, graph.eval.graph, inside, names, behind=False),
        _suffix=suffix,
    )


def _cheapest(
    model: nn.Module, graph: BlockGraph, k: int, options: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[Description, ...]]:
    """The names that may cross with the fewest bytes for an image, and what they stand for."""
    reason = "something in front of it is random, or another in train mode than in eval mode"
    best: tuple[int, tuple[str, ...], tuple[Description, ...]] | None = None
    for names in options:
        if not graph.agreed.issuperset(names):
            continue
        values = [graph.values[name] for name in names]
        errors = [str(value) for value in values if isinstance(value, CutError)]
        if errors:
            reason = errors[0]
            continue
        described = tuple(value for value in values if not isinstance(value, CutError))
        row_bytes = sum(layout.bytes for layout in layouts_in(described))
        if row_bytes > 0 and (best is None or row_bytes <= best[0]):
            best = row_bytes, names, described
    if best is None:
        raise CutError(f"model {type(model).__name__} cannot be cut in front of block {k}: {reason}")
    return best[1:]


def deepen(graph: BlockGraph, model: nn.Module, shallow: Cut, deep: Cut) -> Callable[[nn.Module, Rows], Rows] | None:
    """What computes the rows of a deeper cut from those of a shallower one.

    Args:
        graph: Of both cuts.
        model: The traced model, or one with the same frozen tensors.
        shallow: The cut with fewer frozen blocks.
        deep: The other.

    Returns:
        A function of the model and the shallow cut's rows, which computes in eval mode without gradient; None where the
        deeper cut needs more than what crosses the shallower.
    """
    nodes = {node.name: node for node in graph.eval.graph.nodes}
    between = _ancestors([nodes[name] for name in deep.crossing], set(shallow.crossing))
    if any(nodes[name].op == "placeholder" for name in between - set(shallow.crossing)):
        return None
    outputs = deep.crossing
    function = _extracted(model, graph.eval.graph, between - set(shallow.crossing), shallow.crossing, outputs)

    @torch.no_grad()
    def step(model: nn.Module, rows: Rows) -> Rows:
        with modes_kept(model):
            model.eval()
            return tuple(pack(deep._values, function(model, *unpack(shallow._values, rows))))

    return step


@torch.no_grad()
def check_cut(model: nn.Module, cut: Cut, images: Tensor) -> None:
    """Prove on a batch that prefix and suffix in turn give what the whole model gives in eval mode, bit for bit.

    Args:
        model: The classifier; it stays in the mode it is in.
        cut: Where to cut it.
        images: (B, C, H, W) as the model takes them.

    Raises:
        CutError: The outputs differ.
    """
    with modes_kept(model):
        model.eval()
        whole, parts = model(images.clone()), cut.suffix(model, cut.prefix(model, images.clone()))
    if not same(whole, parts):
        furthest = max(
            (float((a - b).abs().max()) for a, b in zip(tensors_in(whole), tensors_in(parts), strict=False)),
            default=float("nan"),
        )
        raise CutError(
            f"model {type(model).__name__} cut in front of block {cut.k} gives other outputs than whole, by {furthest}"
        )


# Which nodes are in front of the cut


def _prefixes(graph: BlockGraph, mode: ModeGraph, k: int) -> list[frozenset[str]]:
    """Sets of nodes that may be the prefix, from the smallest to the largest."""
    nodes = [node for node in mode.graph.nodes if mode.level[node.name] < k and node.op != "output"]
    inside = _ancestors([node for node in nodes if mode.own[node.name] != FREE and node.op != "get_attr"])
    inside |= {node.name for node in nodes if node.op == "placeholder"}
    movable = []
    for node in nodes:
        if node.name in inside:
            continue
        value = graph.values.get(node.name)
        # Sizes and the like cost nothing, and spare the tensors that they are of from crossing too.
        tiny = value is not None and not isinstance(value, CutError) and not any(layouts_in(value))
        if tiny and all(source.name in inside for source in node.all_input_nodes):
            inside.add(node.name)
        else:
            movable.append(node)
    found = [frozenset(inside)]
    for node in movable:
        inside = inside | {node.name}
        # Behind dropout at rate 0 the same crosses by another name: a cut there would keep trials that differ in that
        # rate from sharing an entry.
        if node.name not in mode.idle:
            found.append(frozenset(inside))
    return found


def _ancestors(nodes: Sequence[fx.Node], stop: set[str] | None = None) -> set[str]:
    """Names of the nodes and all that they depend on, not going on behind those named in ``stop``."""
    found: set[str] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node.name not in found:
            found.add(node.name)
            if stop is None or node.name not in stop:
                todo += node.all_input_nodes
    return found


def _crossing(graph: fx.Graph, inside: frozenset[str]) -> tuple[str, ...]:
    """Names of the nodes inside that are used outside; parameters are there on both sides."""
    return tuple(
        node.name
        for node in graph.nodes
        if node.name in inside and node.op != "get_attr" and any(user.name not in inside for user in node.users)
    )


# The two functions


def _function(
    model: nn.Module, graph: fx.Graph, inside: frozenset[str], crossing: tuple[str, ...], *, behind: bool
) -> Callable[..., Any]:
    """The prefix, images to the values that cross; or, ``behind`` the cut, those values to the model's output."""
    names = {node.name for node in graph.nodes if node.op != "output"}
    if behind:
        return _extracted(model, graph, names - inside, crossing, None)
    images = next(node.name for node in graph.nodes if node.op == "placeholder")
    return _extracted(model, graph, inside - {images}, (images,), crossing)


def _extracted(
    model: nn.Module,
    graph: fx.Graph,
    names: frozenset[str] | set[str],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...] | None,
) -> Callable[..., Any]:
    """A function of a model and the values ``inputs`` that does what the nodes ``names`` do.

    It returns the values ``outputs`` as a tuple, or for None what the whole graph returns.
    """
    part = fx.Graph()
    copies = {name: part.placeholder(name) for name in inputs}

    def copy(node: fx.Node) -> fx.Node:
        # Parameters are asked of the model on either side of the cut.
        if node.name not in copies and node.op == "get_attr":
            copies[node.name] = part.node_copy(node)
        return copies[node.name]

    for node in graph.nodes:
        if node.op == "output":
            returned = node.args[0] if outputs is None else tuple(copies[name] for name in outputs)
            part.output(fx.node.map_arg(returned, copy) if outputs is None else returned)
        elif node.name in names and node.name not in copies:
            copies[node.name] = part.node_copy(node, copy)
    # The generated function, not the GraphModule: it asks the model that it is given for its modules when it is called,
    # where a GraphModule would keep those, and the buffers, that the traced model had.
    return type(fx.GraphModule(model, part)).forward


def _state_names(model: nn.Module, graph: fx.Graph, inside: frozenset[str]) -> tuple[str, ...]:
    names = set()
    for node in graph.nodes:
        if node.name in inside and node.op == "call_module":
            module = model.get_submodule(str(node.target))
            held = [*module.named_parameters(), *module.named_buffers()]
            names |= {f"{node.target}.{name}" for name, _ in held}
        elif node.name in inside and node.op == "get_attr":
            names.add(str(node.target))
    return tuple(sorted(names))
