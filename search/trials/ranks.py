"""The rank group of a study: the processes that train each of its trials together."""

from pathlib import Path

from search.config import StudyConfig
from search.processes import RANK_TIMEOUT, RankGroup, RankOrders
from trainers import Device


def rank_group_of(config: StudyConfig, device: Device) -> RankGroup:
    """The rank group of a study, with ``executor.gpus_per_trial`` ranks.

    Args:
        config: The study's configuration.
        device: The device of rank 0.

    Raises:
        ConfigError: There are fewer GPUs.
    """

    def orders(device: str, threads: int, meeting: Path) -> str:
        of_rank = config.model_copy(update={"device": device, "threads": threads})
        return RankOrders(config=of_rank, meeting=meeting, seconds=RANK_TIMEOUT.total_seconds()).model_dump_json()

    executor = config.executor
    # On a cluster the process that trains runs on another machine than the one that checks.
    return RankGroup(executor.gpus_per_trial, device, config.threads, orders, is_here=executor.name != "ray")
