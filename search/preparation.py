"""A study made ready: configuration, data, models, teacher and stores checked and opened, the cheapest first."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna import Study
from optuna.study import StudyDirection

from search.best_first import best_first
from search.centring import centred, suggested_lr
from search.config import StudyConfig
from search.datasets import datasets_of
from search.identity import check_identity, check_space, identity
from search.locks import lock_of, taking_turns
from search.recovery import open_storage
from search.samplers import make_pruner
from search.similar import BLOCKS, FEATURES, features_of
from search.teacher import load_teacher
from search.team import Team
from search.tracking import Tracker, absolute_sqlite, fetch_uri, git_commit
from search.trial import Bench, Watcher, model_tags
from search.urls import without_password
from strategies import (
    ConfigError,
    Entry,
    Fixed,
    FloatRange,
    Space,
    Strategy,
    check_depths,
    check_optimizer_names,
    first_line,
    without,
)
from trainers import (
    TASKS,
    ActivationStore,
    Compiler,
    Device,
    ImageData,
    ModelSource,
    Reuse,
    Teacher,
    Trainer,
    check_model_name,
    choose_device,
    find_weights,
    open_data,
    top_of,
    unusable_fields,
)

PARENT_RUN, SUGGESTED_LR = "mlflow_parent_run", "suggested_lr"


@dataclass(frozen=True, slots=True)
class Materials:
    """What trials are made of, apart from the stores: opened and checked."""

    data: ImageData
    sources: Mapping[str, ModelSource]
    device: Device
    teacher: Teacher | None
    compiler: Compiler | None
    reuse: Reuse | None


def gather(config: StudyConfig, terminal: Watcher) -> Materials:
    """Check and open everything that trials are made of, the cheapest first.

    Args:
        config: The study's.
        terminal: Is told what is read and downloaded.

    Raises:
        UnfreezeError: Something of it cannot be used.
    """
    _hush_libraries()
    space = config.space()
    for name in config.model.names:
        check_model_name(name)
    check_optimizer_names(space)
    device = choose_device(config.device, config.precision)
    compiler = None
    if config.compile != "off":
        compiler = Compiler(config.compile, device, Path(config.data.cache) / "compiled")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = open_data(
        task=config.task, in_chans=config.model.in_chans, **config.data.model_dump(), progress=terminal.reading
    )
    sources = _open_sources(config, data, terminal)
    _check_depths(space, list(sources.values()))
    teacher = None
    if config.teacher is not None:
        teacher = load_teacher(config.teacher, config.tracking.uri, data.classes, config.model.in_chans, device)
    reuse = _make_reuse(config, max(source.num_blocks for source in sources.values()))
    return Materials(data, sources, device, teacher, compiler, reuse)


def prepare(config: StudyConfig, terminal: Watcher, joins: bool = False) -> Bench:
    """Check and open everything that trials share, the cheapest first.

    Args:
        config: The study's.
        terminal: Is told what was opened.
        joins: A process that has prepared the study started this one, to work on it too.
    """
    found = gather(config, terminal)
    data, sources, device, teacher = found.data, found.sources, found.device, found.teacher
    team = Team(config, device)
    assert config.name is not None, "composition names every study"
    space = config.space()
    left_out = {name: unusable_fields(space, s, config.task, teacher is not None) for name, s in sources.items()}
    _refuse_useless(space, list(left_out.values()))

    # A study that is refused above or here leaves nothing behind in the stores.
    # Two processes that make the tables of a store at once would get in each other's way, and make two parent runs.
    with taking_turns(config, "begin", terminal.say):
        tracker = Tracker(
            config.tracking.uri,
            config.tracking.artifacts,
            config.name,
            Path(config.data.cache).absolute() / "spool",
            terminal.say,
            # A worker that is started while MLflow is away works like the others.
            is_checked=not joins,
        )
        study = _open_study(config)
        check_identity(study, identity(config, data, list(sources.values())))
        check_space(study, space)
        if not joins and FEATURES not in study.user_attrs:
            study.set_user_attr(BLOCKS, {name: source.num_blocks for name, source in sources.items()})
            study.set_user_attr(FEATURES, features_of(data))
        first = sources[config.model.names[0]]
        run_tags = {
            "unfreeze.study": config.name,
            "unfreeze.data_fingerprint": data.fingerprint,
            "unfreeze.device": device.description,
            "mlflow.source.git.commit": git_commit(),
        }
        if joins:
            parent = str(study.user_attrs[PARENT_RUN])
            tracker.join(parent)
        else:
            parent_tags = {"unfreeze.kind": "study", **run_tags, **model_tags(list(sources.values()))}
            parent = tracker.open_parent(study.user_attrs.get(PARENT_RUN), config.name, parent_tags)
            tracker.save_view(best_first(space, len(sources) > 1, study.directions[0] == StudyDirection.MINIMIZE))
            study.set_user_attr(PARENT_RUN, parent)
            tracker.log(parent, datasets=datasets_of(config.data, data, ("train", "val", "test")))
            tracker.log_json(parent, "study.json", config.to_show())
    terminal.say(f"Study   {config.name}: {len(study.get_trials(deepcopy=False))} trials so far, {device.description}")
    terminal.say(f"Data    {data.summary()}")
    for source in sources.values():
        weights = f"weights {source.weights.source} ({source.weights.digest})"
        terminal.say(f"Model   {source.name}, {source.num_blocks} blocks, {weights}")
        for reason in dict.fromkeys(left_out[source.name].values()):
            names = ", ".join(field for field, why in left_out[source.name].items() if why == reason)
            terminal.say(f"Space   without {names}: {reason}")
    if config.centre_lr:

        def make_trainer(strategy: Strategy) -> Trainer:
            return Trainer(first, data, strategy, config.seed, device, teacher)

        space = _centred(space, study, make_trainer, terminal)
    spaces = {name: without(space, fields) for name, fields in left_out.items()}
    shared = (teacher, found.reuse, found.compiler, lock_of(config, "claim"), team)
    return Bench(config, spaces, sources, data, device, study, tracker, parent, run_tags, terminal, *shared)


def _hush_libraries() -> None:
    """Keep back what libraries say about things that are done here on purpose."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # We beat ourselves, in search.recovery.
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    warnings.filterwarnings("ignore", message="Some regimes for parameter")


def _make_reuse(config: StudyConfig, num_blocks: int) -> Reuse | None:
    """What shares the frozen parts of trials' models; None if that is off."""
    if config.reuse == "off":
        return None
    store = ActivationStore(Path(config.data.cache), int(config.reuse_gib * 2**30))
    # Depths are spread over the blocks, so each of them may be expected to come so often.
    sharing = max(1.0, (config.budget.trials or num_blocks) / (num_blocks + 1))
    return Reuse(store, always=config.reuse == "on", sharing=sharing)


def _refuse_useless(space: Space, left_out: Sequence[Mapping[str, str]]) -> None:
    """Refuse plain values that mean nothing for any of the models; all else is left out where it means nothing."""
    for name, reason in left_out[0].items():
        entry = space[name]
        if isinstance(entry, Fixed) and all(name in reasons for reasons in left_out):
            raise ConfigError(f"strategy.{name}: {entry.value!r} cannot be used: {reason}")


def _centred(
    space: Space, study: Study, make_trainer: Callable[[Strategy], Trainer], terminal: Watcher
) -> dict[str, Entry]:
    """The space with its rates where a range test says; the test is made once a study."""
    if SUGGESTED_LR not in study.user_attrs:
        study.set_user_attr(SUGGESTED_LR, suggested_lr(space, make_trainer))
    lr = study.user_attrs[SUGGESTED_LR]
    if lr is None:
        terminal.say("Rates   the range test's loss never fell clearly; strategy.lr stays as it is")
        return dict(space)
    found = centred(space, lr)
    rates = found["lr"]
    assert isinstance(rates, FloatRange)
    terminal.say(f"Rates   the range test suggests {lr:.1e}; searched from {rates.low:.1e} to {rates.high:.1e}")
    return found


def _open_sources(config: StudyConfig, data: ImageData, terminal: Watcher) -> dict[str, ModelSource]:
    """Find the weights of each model; all at once, since what was found tells whether trials are comparable."""
    sources = {}
    for name in config.model.names:
        weights = find_weights(
            name,
            config.model.weights,
            resolve_uri=lambda uri: fetch_uri(uri, config.tracking.uri),
            progress=terminal.downloading,
            beside=config.model.names,
        )
        size = config.data.image_size
        top = top_of(config.task, config.model.decoder, len(data.classes), size)
        sources[name] = ModelSource(name, weights, len(data.classes), size, config.model.in_chans, top)
    return sources


def _check_depths(space: Space, sources: Sequence[ModelSource]) -> None:
    """Refuse whole-number depths larger than the smallest model."""
    smallest = min(sources, key=lambda source: source.num_blocks)
    try:
        check_depths(space, smallest.num_blocks)
    except ConfigError as error:
        raise ConfigError(f"{error} ({smallest.name})" if len(sources) > 1 else str(error)) from error


def _open_study(config: StudyConfig) -> Study:
    first = StudyDirection.MINIMIZE if config.metric in TASKS[config.task].lower_is_better else StudyDirection.MAXIMIZE
    directions = [first, *(StudyDirection.MINIMIZE for _ in config.costs)]
    try:
        storage = open_storage(absolute_sqlite(config.store.url), retries=lambda: config.retries)
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            directions=directions,
            pruner=make_pruner(config.pruner),
            load_if_exists=True,
        )
    except Exception as error:  # each database driver has errors of its own
        raise ConfigError(
            f"store.url: {without_password(config.store.url)!r} cannot be opened: {first_line(error)}"
        ) from error
    if study.directions != directions:
        raise ConfigError(
            f"study {study.study_name!r} has trials that would not be comparable: it was searched to "
            f"{_in_words(study.directions)}, and now is to {_in_words(directions)}; begin a new study with "
            f"name={study.study_name}-2"
        )
    return study


def _in_words(directions: Sequence[StudyDirection]) -> str:
    """``maximize its metric and minimize 2 of its costs``."""
    metric, *costs = (direction.name.lower() for direction in directions)
    return f"{metric} its metric" + (f" and {costs[0]} {len(costs)} of its costs" if costs else "")
