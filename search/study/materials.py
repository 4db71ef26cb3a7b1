"""The materials of trials, checked and opened: data, models, teacher, caches."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from search.config import StudyConfig, check_extras
from search.storage import MLFLOW_TABLE, check_begun, fetch_uri
from search.study.image_size import with_image_size
from search.study.teacher import TeacherFiles, fetch_teacher, load_teacher
from search.trials import Lineage, Materials, Watcher, lineage_of
from strategies import ConfigError, Space, check_depths, check_optimizer_names
from trainers import (
    ActivationStore,
    Compiler,
    Device,
    ModelSource,
    Reuse,
    check_model_name,
    choose_device,
    find_weights,
    open_data,
    top_of,
)

# Stands for the number of classes until the images are read.
_SOME_CLASSES = 2


@dataclass(frozen=True, slots=True)
class Models:
    """The materials that do not depend on the images.

    Args:
        config: The study's configuration, with the size of the images.
        sources: Models by name.
        device: Where to compute.
        compiler: None where nothing is compiled.
        teacher: The teacher's files; None without a teacher.
        lineage: The models of MLflow that the sources and the teacher come from.
    """

    config: StudyConfig
    sources: Mapping[str, ModelSource]
    device: Device
    compiler: Compiler | None
    teacher: TeacherFiles | None
    lineage: Lineage


def open_models(config: StudyConfig, terminal: Watcher) -> Models:
    """Check and open all materials but the images, the cheapest first; nothing is written.

    Args:
        config: The study's configuration.
        terminal: Shows the progress of downloading.

    Raises:
        UnfreezeError: The configuration or the weights cannot be used.
    """
    check_extras(config)
    _hush_libraries()
    space = config.space()
    for name in config.model.names:
        check_model_name(name)
    check_optimizer_names(space)
    device = choose_device(config.device, config.precision, config.deterministic)
    compiler = None
    if config.compile != "off":
        compiler = Compiler(config.compile, device, Path(config.data.cache) / "compiled")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config, sources, lineage = _open_sources(config, terminal)
    _check_depths(space, list(sources.values()))
    teacher = None
    if config.teacher is not None:
        check_begun("teacher: tracking.uri", config.tracking.uri, MLFLOW_TABLE)
        teacher = fetch_teacher(config.teacher, config.tracking.uri, config.model.in_chans)
        lineage |= teacher.lineage
    return Models(config, sources, device, compiler, teacher, lineage)


def gather(models: Models, terminal: Watcher) -> Materials:
    """Read the images, and open the teacher and the cache: all materials of trials.

    Args:
        models: From :func:`open_models`. They come first: reading images may take hours, and leaves a cache behind.
        terminal: Shows the progress of reading.

    Raises:
        UnfreezeError: The images or the teacher cannot be used, or no test image is left that the teacher and the
            models' weights were not made with.
    """
    config, sources, device = models.config, models.sources, models.device
    data = open_data(
        task=config.task,
        in_chans=config.model.in_chans,
        **config.data.model_dump(),
        seen=models.lineage.seen,
        progress=terminal.reading,
    )
    for source in sources.values():
        count = len(data.classes)
        source.fit_outputs(count, top_of(config.task, config.model.decoder, count, data.preprocessing.image_size))
    teacher = None
    if models.teacher is not None:
        teacher = load_teacher(models.teacher, data.classes, device)
    reuse = _make_reuse(config, max(source.num_blocks for source in sources.values()))
    return Materials(data, sources, device, teacher, models.compiler, reuse, models.lineage)


def _hush_libraries() -> None:
    """Silence warnings of libraries about things that are done here on purpose."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # Heartbeats are sent by search.scheduling.heartbeat.
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    warnings.filterwarnings("ignore", message="Some regimes for parameter")


def _make_reuse(config: StudyConfig, num_blocks: int) -> Reuse | None:
    """Shares the features of frozen blocks among trials; None if that is off."""
    if config.reuse == "off":
        return None
    store = ActivationStore(Path(config.data.cache), int(config.reuse_gib * 2**30))
    # Depths are spread over the blocks, so each depth is expected so many times.
    sharing = max(1.0, (config.budget.trials or num_blocks) / (num_blocks + 1))
    return Reuse(store, always=config.reuse == "on", sharing=sharing)


def _open_sources(config: StudyConfig, terminal: Watcher) -> tuple[StudyConfig, dict[str, ModelSource], Lineage]:
    """Find the weights of each model, all before any trial, since their digests tell whether trials are comparable.

    The number of classes is not known yet.

    Returns:
        The configuration with the size of the images, the models by name, and the models of MLflow that they come from.
    """
    found, sources, lineage = {}, {}, Lineage()
    fetched: dict[str, Lineage] = {}

    def fetch(uri: str) -> Path:
        place = fetch_uri(uri, config.tracking.uri)
        fetched[uri] = lineage_of(uri, place)
        return place

    for name in config.model.names:
        found[name] = find_weights(
            name,
            config.model.weights,
            resolve_uri=fetch,
            progress=terminal.downloading,
            beside=config.model.names,
        )
    config = with_image_size(config, found, terminal)
    size = config.data.image_size
    assert size is not None, "it was just found"
    for name, weights in found.items():
        top = top_of(config.task, config.model.decoder, _SOME_CLASSES, size)
        sources[name] = ModelSource(name, weights, _SOME_CLASSES, size, config.model.in_chans, top)
        # Of what was fetched, the first in the list that fits is taken; other weights have no lineage.
        lineage |= fetched.get(weights.source, Lineage())
    return config, sources, lineage


def _check_depths(space: Space, sources: Sequence[ModelSource]) -> None:
    """Refuse whole-number depths larger than the smallest model."""
    smallest = min(sources, key=lambda source: source.num_blocks)
    try:
        check_depths(space, smallest.num_blocks)
    except ConfigError as error:
        raise ConfigError(f"{error} ({smallest.name})" if len(sources) > 1 else str(error)) from error
