"""The gradients of one training step: forward, loss, backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from strategies import HEAD, Plan, RelativeGradients, Sam, Strategy, fixed_batch_stats
from trainers.device import Device
from trainers.forward import Forward
from trainers.memory import Fitting, in_parts, is_out_of_memory
from trainers.training.batches import Batch
from trainers.training.loss_scale import LossScale
from trainers.training.losses import Criterion
from trainers.training.ranks import Ranks
from trainers.training.synced_norm import norms_by_batch


class Gradients:
    """Computes the gradients of a batch, in parts where the batch does not fit into memory, and over all ranks.

    A batch is seen in parts only where the parts' gradients add up to those of the batch. BatchNorm in train mode, BSS,
    Dice and Lovász look at a whole batch.

    Args:
        model: The model on its device, as it is trained.
        forward: Calls the model.
        criterion: The training loss.
        strategy: In canonical form.
        device: Where to compute.
        optimizer: Its parameters are the ones that get gradients.
        sam: Climbs before the gradients that a step takes are computed; None without SAM.
        ranks: The processes that train together.
        fitting: Finds in how many parts a batch fits into memory.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        criterion: Criterion,
        strategy: Strategy,
        device: Device,
        optimizer: torch.optim.Optimizer,
        sam: Sam | None,
        ranks: Ranks,
        fitting: Fitting,
    ) -> None:
        self._model, self._forward, self._criterion, self._strategy = model, forward, criterion, strategy
        self._device, self._optimizer, self._sam, self._ranks = device, optimizer, sam, ranks
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.fitting = fitting
        self.scale = LossScale(device, optimizer)
        #: Whether all gradients of the latest batch are finite; where they are not, in fp16, no step is to be taken.
        self.are_finite = True
        self._undivided = Fitting(1)

    def compute(self, batch: Batch) -> Tensor:
        """Leave in the parameters the gradients that the next step takes, and return the loss before that step.

        The loss is a scalar on the device, and is not waited for.

        Raises:
            MemoryError: The batch does not fit into memory, and seen in parts it would be another training.
        """
        loss = self._forward_backward(batch)
        if self._sam is not None and self.are_finite:
            self._sam.climb()
            with fixed_batch_stats(self._model):
                self._forward_backward(batch)
            if not self.are_finite:
                self._sam.go_back()
        if self._strategy.clip_grad > 0:
            nn.utils.clip_grad_norm_(self._trained, self._strategy.clip_grad)
        return loss

    def relative(self, plan: Plan, epoch: int, batches: Iterable[Batch]) -> dict[int, float]:
        """Factors on the learning rates of the blocks that are trained in an epoch, by block.

        Args:
            plan: Of the model.
            epoch: From 0.
            batches: The batches to measure gradients on.
        """
        names: dict[int, list[str]] = {}
        for param in plan.params:
            if param.block != HEAD and param.trained_in(epoch):
                names.setdefault(param.block, []).append(param.name)
        if not names:
            return {}
        ratios = RelativeGradients(self._model, list(names.values()))
        with fixed_batch_stats(self._model):
            for batch in batches:
                self._forward_backward(batch)
                if self.are_finite:
                    ratios.add()
        return dict(zip(names, ratios.factors(), strict=True))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """Compute the gradients of a whole batch, with the images of all ranks, and return its loss."""

        def attempt(parts: int) -> Tensor:
            """See the batch in parts. An attempt that runs out of memory ends with its frame, which frees its graph."""
            self._optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=self._device.torch)
            is_whole = parts == 1 and self._ranks.is_alone
            sizes = [torch.arange(size).tensor_split(parts) for size in self._ranks.sizes(len(batch.all_targets))]
            for k, micro in enumerate(in_parts(batch.inputs, batch.targets, batch.teacher_logits, parts)):
                inputs, targets, teacher_logits = micro
                with self._device.autocast():
                    outputs = self._forward(self._model, inputs, batch.cut, parts)
                loss = self._criterion(inputs, outputs, targets, teacher_logits, [len(of_rank[k]) for of_rank in sizes])
                if not is_whole:
                    loss = loss * self._criterion.share(targets, batch.all_targets)
                self.scale.scaled(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            return total

        if self._ranks.is_alone:
            loss = self._fitted(attempt, len(batch.all_targets))
        else:
            with self._ranks.stepping():
                loss = self._fitted(attempt, len(batch.all_targets))
            self._add_up_over_ranks(loss)
        self.are_finite = self.scale.unscale()
        return loss

    def _fitted(self, attempt: Callable[[int], Tensor], images: int) -> Tensor:
        """The loss of a batch of so many images, in as many parts as memory asks for, if the batch may be divided."""
        norms, of_whole_batch = norms_by_batch(self._model), list(self._criterion.of_whole_batch)
        if not norms and not of_whole_batch:
            return self.fitting.do(attempt)
        try:
            # Ranks wait for each other within the pass, so that one rank alone could not begin the pass again.
            return self._undivided.do(attempt) if self._ranks.is_alone else attempt(1)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            cures = ["a smaller strategy.batch_size"]
            if norms:
                of_whole_batch.append("BatchNorm in train mode")
                # BatchNorm of a decoder is new, and always in train mode.
                if not any(name.startswith("top.") for name in norms):
                    cures.append("strategy.batch_norm=frozen_stats")
            raise MemoryError(
                f"a batch of {images} images does not fit, and would be another training in parts, because of "
                f"{' and '.join(of_whole_batch)}; take {' or '.join(cures)}"
            ) from error

    def _add_up_over_ranks(self, loss: Tensor) -> None:
        """Replace the loss and the gradients by their sums over the ranks."""
        trained = [p for p in self._trained if p.requires_grad]
        # A rank has no gradient for a branch that none of its images takes.
        for p, has in zip(trained, self._ranks.any([p.grad is not None for p in trained]), strict=True):
            if has and p.grad is None:
                p.grad = torch.zeros_like(p)
        self._ranks.add_up([loss, *(p.grad for p in trained if p.grad is not None)])
