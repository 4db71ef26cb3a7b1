"""The frozen blocks of a model under a strategy, and their outputs."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from strategies import Plan, split_blocks
from trainers.reuse.cut import Cut, deepen
from trainers.reuse.entry import Activations
from trainers.reuse.graph import BlockGraph
from trainers.reuse.rows import Rows
from trainers.reuse.store import ActivationStore, Content


def frozen_blocks(model: nn.Module, plan: Plan) -> int:
    """The number of blocks, from the input, that do the same in every epoch: the model can be cut behind them.

    Args:
        model: The classifier.
        plan: The plan of a strategy for the model.
    """
    trained = {param.block for param in plan.params if param.from_epoch is not None}
    for index, block in enumerate(split_blocks(model).body):
        # A block without a parameter that may be trained can still update the statistics of its BatchNorm.
        asleep = all(name in plan.awake and plan.awake[name] is None for name in block.modules)
        if index in trained or not asleep:
            return index
    return plan.num_blocks


def prefix_rows(
    store: ActivationStore,
    graph: BlockGraph,
    model: nn.Module,
    cut: Cut,
    content_of: Callable[[Cut], Content],
    images: Callable[[], Iterable[Tensor]],
    count: int,
    batch_size: int,
    shallower: Iterable[Cut] = (),
) -> Activations:
    """The prefix's outputs for a split: from the store, or computed and stored.

    They are computed from the deepest of ``shallower`` cuts whose outputs are in the store, else from the images. Call
    this function under the autocast in which the model will run.

    Args:
        store: Holds the entries.
        graph: The graph of all the cuts.
        model: The classifier, on its device.
        cut: The cut of the model.
        content_of: Gives the content of a cut's entry for this split.
        images: Gives the split's images in its order, batches (B, C, H, W) as the model takes them, on its device.
        count: Number of images in the split.
        batch_size: Rows that are computed at once from rows of another cut.
        shallower: Cuts of the same graph in front of ``cut``; read only if there is something to compute.

    Raises:
        NoRoomError: The outputs cannot be stored.
    """

    def batches() -> Iterable[Rows]:
        for other in sorted(shallower, key=lambda other: -other.k):
            step = deepen(graph, model, other, cut) if other.k < cut.k else None
            found = store.find(content_of(other), other.rows, count) if step is not None else None
            # One pass through the rows: each would be checked in it anyhow.
            if step is not None and found is not None and found.is_sound():
                device = next(model.parameters()).device
                return (step(model, rows) for rows in found.batches(torch.arange(count), batch_size, device))
        return (cut.prefix(model, batch) for batch in images())

    return store.build(content_of(cut), cut.rows, count, batches)
