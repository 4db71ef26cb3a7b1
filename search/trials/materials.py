"""The materials of trials, and the trainer made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.config import PrunerConfig
from search.scheduling import short_epochs
from search.trials.lineage import Lineage
from strategies import Strategy
from trainers import ALONE, Compiler, Device, ImageData, ModelSource, Ranks, Reuse, Teacher, Trainer, free_memory


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything that trials need besides the stores, opened and checked; None for what the study does not use."""

    data: ImageData
    sources: Mapping[str, ModelSource]
    device: Device
    teacher: Teacher | None
    compiler: Compiler | None
    reuse: Reuse | None
    lineage: Lineage = field(default_factory=Lineage)

    def release(self) -> None:
        """Free all that this process keeps on the device, for other processes that compute there."""
        for split in (self.data.train, self.data.val, self.data.test):
            split.release()
        if self.reuse is not None:
            self.reuse.release(self.device.torch)
        free_memory()


def make_trainer(
    materials: Materials,
    pruner: PrunerConfig,
    source: ModelSource,
    strategy: Strategy,
    seed: int,
    ranks: Ranks = ALONE,
) -> Trainer:
    """The trainer of a trial, the same on each of its ranks.

    Raises:
        ConfigError: The strategy cannot be applied.
    """
    return Trainer(
        source,
        materials.data,
        strategy,
        seed,
        materials.device,
        materials.teacher,
        materials.reuse,
        pruner.reports_per_epoch,
        short_epochs(pruner, strategy.epochs),
        materials.compiler,
        ranks,
    )


def model_tags(sources: Sequence[ModelSource]) -> dict[str, str]:
    """MLflow tags that say which models, and from which weights."""
    return {
        "unfreeze.model": ", ".join(source.name for source in sources),
        "unfreeze.weights": ", ".join(source.weights.source for source in sources),
        "unfreeze.weights_digest": ", ".join(source.weights.digest for source in sources),
    }
