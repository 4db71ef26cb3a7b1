"""Opening a study: configuration, data, models, teacher and stores are checked and opened, the cheapest first."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import optuna
from optuna import Study
from optuna.study import StudyDirection

from search.config import StudyConfig, without_password
from search.processes import RankGroup
from search.scheduling import Ledger, StudySampler, make_pruner, requeuing
from search.storage import (
    BLOCKS,
    FEATURES,
    MODEL_FACTS,
    PARENT_KEY,
    PARENT_RUN,
    SUGGESTED_LR,
    AttributeWriter,
    LockPlace,
    absolute_sqlite,
    lock_of,
    make_folder_of,
    open_storage,
    sync_log,
    taking_turns,
)
from search.study.comparability import check_identity, check_space, identity
from search.study.image_size import remarks
from search.study.lr_range import centred, suggested_lr
from search.study.materials import Models, gather, open_models
from search.study.planning import facts_of, planner_of, unknown_to_policy
from search.study.presets import check_presets
from search.study.similar import features_of
from search.tracking import Tracker, TrialRuns, best_first, datasets_of, git_commit, new_run_key
from search.trials import Materials, OpenStudy, Watcher, model_tags, rank_group_of
from strategies import (
    ConfigError,
    Entry,
    Fixed,
    FloatRange,
    Space,
    Strategy,
    UnfreezeError,
    counted,
    first_line,
    without,
)
from trainers import TASKS, Trainer, unusable_fields

# Seconds after which images that were decoded stay when the study is refused.
_KEPT_FROM = 60.0


def prepare(config: StudyConfig, watcher: Watcher, joins: bool = False) -> OpenStudy:
    """Check and open everything that trials share, the cheapest first.

    Args:
        config: The study's configuration.
        watcher: Shows what was opened, and the events of trials.
        joins: Whether this process is a worker, started by a process that has opened the study.

    Raises:
        UnfreezeError: The configuration, data, weights or stores cannot be used.
    """
    check_presets(config)
    models = open_models(config, watcher)
    config = models.config
    rank_group = rank_group_of(config, models.device)
    space = config.space()
    left_out = {
        name: unusable_fields(space, source, config.task, config.teacher is not None)
        for name, source in models.sources.items()
    }
    _refuse_useless(space, list(left_out.values()))
    with _refusing_cleanly(Path(config.data.cache), watcher):
        return _open_images_and_stores(config, models, left_out, rank_group, watcher, joins)


def _open_images_and_stores(
    config: StudyConfig,
    models: Models,
    left_out: Mapping[str, Mapping[str, str]],
    rank_group: RankGroup,
    watcher: Watcher,
    joins: bool,
) -> OpenStudy:
    """Read the images, and begin or resume the study in its stores."""
    assert config.name is not None, "composition names every study"
    materials, space = gather(models, watcher), config.space()

    # A study that is refused, here or by the checks below, leaves nothing in the stores. One process at a time: two
    # that create a store's tables together would disturb each other, and make two parent runs.
    with taking_turns(lock_place(config), "begin", watcher.say):
        tracker = Tracker(
            config.tracking.uri,
            config.tracking.artifacts,
            config.name,
            Path(config.data.cache).absolute() / "spool",
            watcher.say,
            # A worker must also start while MLflow cannot be reached.
            is_checked=not joins,
        )
        study = _open_study(config)
        check_identity(study, identity(config, materials.data, list(materials.sources.values())))
        check_space(study, space)
        if study.metric_names is None:
            # Optuna's pages call the objectives so.
            study.set_metric_names([config.metric, *config.costs])
        tags = _run_tags(config, materials)
        if joins:
            parent = str(study.user_attrs[PARENT_RUN])
            tracker.join(parent)
        else:
            _note_features(study, materials)
            parent = _open_parent(config, materials, study, tracker, tags)
    _say_what_was_opened(config, study, materials, left_out, watcher)
    if config.centre_lr:
        space = _centred(space, study, config, materials, watcher)
    open_study = OpenStudy(
        config=config,
        spaces={name: without(space, fields) for name, fields in left_out.items()},
        materials=materials,
        study=study,
        tracker=tracker,
        attributes=AttributeWriter(),
        parent_run=parent,
        run_tags=tags,
        watcher=watcher,
        listeners=(
            TrialRuns(tracker, parent, tags, datasets_of(config.data, materials.data), config.metric),
            watcher.hear,
        ),
        lock=lock_of(lock_place(config), "claim"),
        rank_group=rank_group,
    )
    if config.sampler.name == "learned" and (unknown := unknown_to_policy(config)):
        watcher.say(f"Sampler tpe: the learnt policy does not know {unknown}")
    return replace(open_study, planner=planner_of(open_study))


@contextmanager
def _refusing_cleanly(cache: Path, watcher: Watcher) -> Iterator[None]:
    """If the study is refused in the ``with`` block, remove what was decoded there, or say that it stays."""
    start, before = time.monotonic(), _decoded(cache)
    missing = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    try:
        yield
    except UnfreezeError:
        new = _decoded(cache) - before
        if time.monotonic() - start < _KEPT_FROM:
            _remove(new, missing)
        elif new:
            watcher.say(f"Images that were decoded stay in {cache}, so that the next start is fast")
        raise


def _decoded(cache: Path) -> set[Path]:
    return {path for path in (cache / "images").rglob("*") if not path.is_dir()}


def _remove(files: Iterable[Path], missing: Sequence[Path]) -> None:
    """Remove new files of a cache and their folders, or all of the cache if it is new."""
    if missing:
        shutil.rmtree(missing[0], ignore_errors=True)
    for path in files:
        path.unlink(missing_ok=True)
    folders = {parent for path in files for parent in path.parents[:2]}
    # The innermost first; a folder that holds something else stays.
    for folder in (*sorted(folders, key=lambda path: len(path.parts), reverse=True), *missing[1:]):
        with suppress(OSError):
            folder.rmdir()


def lock_place(config: StudyConfig) -> LockPlace:
    """The place of a study's locks."""
    assert config.name is not None, "composition names every study"
    return LockPlace(config.store.url, config.name, config.data.cache)


def _run_tags(config: StudyConfig, materials: Materials) -> dict[str, str]:
    """MLflow tags of every run of the study."""
    return {
        "unfreeze.study": str(config.name),
        "unfreeze.data_fingerprint": materials.data.fingerprint,
        "unfreeze.device": materials.device.description,
        "mlflow.source.git.commit": git_commit(),
    }


def _note_features(study: Study, materials: Materials) -> None:
    """Store features of the study's images and models, from which the learnt policy of later studies learns."""
    if FEATURES not in study.user_attrs:
        study.set_user_attr(BLOCKS, {name: source.num_blocks for name, source in materials.sources.items()})
        study.set_user_attr(FEATURES, features_of(materials.data))
    if MODEL_FACTS not in study.user_attrs and materials.data.task == "classification":
        study.set_user_attr(MODEL_FACTS, {name: facts_of(source) for name, source in materials.sources.items()})


def _open_parent(
    config: StudyConfig, materials: Materials, study: Study, tracker: Tracker, tags: Mapping[str, str]
) -> str:
    """Begin the study's run in MLflow, or resume it, and return its id."""
    sources = list(materials.sources.values())
    # By its key the next start finds the run of a process that was killed before it stored the run's id.
    if PARENT_KEY not in study.user_attrs:
        study.set_user_attr(PARENT_KEY, new_run_key())
    parent = tracker.open_parent(
        study.user_attrs.get(PARENT_RUN),
        str(config.name),
        {"unfreeze.kind": "study", **tags, **model_tags(sources)},
        study.user_attrs[PARENT_KEY],
    )
    # A power cut must not take the run from MLflow and leave Optuna its id: folders on disk are named after it.
    sync_log(tracker.uri)
    minimizes = study.directions[0] == StudyDirection.MINIMIZE
    tracker.save_view(best_first(config.space(), len(sources) > 1, minimizes))
    study.set_user_attr(PARENT_RUN, parent)
    tracker.log(parent, datasets=datasets_of(config.data, materials.data, ("train", "val", "test")))
    tracker.log_json(parent, "study.json", config.to_show())
    return parent


def _say_what_was_opened(
    config: StudyConfig, study: Study, materials: Materials, left_out: Mapping[str, Mapping[str, str]], watcher: Watcher
) -> None:
    # Without those that are queued.
    trials = Ledger(study).counted
    watcher.say(f"Study   {study.study_name}: {counted(trials, 'trial')} so far, {materials.device.description}")
    watcher.say(f"Data    {materials.data.summary()}")
    for line in remarks(config, materials.data, {name: one.weights for name, one in materials.sources.items()}):
        watcher.say(line)
    for uri in materials.lineage.unknown:
        watcher.say(
            f"Seen    nothing is known of the images that {uri} was trained on and chosen by; test images among them "
            "would flatter the test score"
        )
    for source in materials.sources.values():
        weights = f"weights {source.weights.source} ({source.weights.digest})"
        watcher.say(f"Model   {source.name}, {source.num_blocks} blocks, {weights}")
        for reason in dict.fromkeys(left_out[source.name].values()):
            names = ", ".join(field for field, why in left_out[source.name].items() if why == reason)
            watcher.say(f"Space   without {names}: {reason}")


def _refuse_useless(space: Space, left_out: Sequence[Mapping[str, str]]) -> None:
    """Refuse fixed values that no model can use; other fields are left out for the models that cannot use them."""
    for name, reason in left_out[0].items():
        entry = space[name]
        if isinstance(entry, Fixed) and all(name in reasons for reasons in left_out):
            raise ConfigError(f"strategy.{name}: {entry.value!r} cannot be used: {reason}")


def _centred(
    space: Space, study: Study, config: StudyConfig, materials: Materials, watcher: Watcher
) -> dict[str, Entry]:
    """The space with its rates centred by a range test, which is run once a study."""

    def make_trainer(strategy: Strategy) -> Trainer:
        source = materials.sources[config.model.names[0]]
        return Trainer(source, materials.data, strategy, config.seed, materials.device, materials.teacher)

    if SUGGESTED_LR not in study.user_attrs:
        study.set_user_attr(SUGGESTED_LR, suggested_lr(space, make_trainer))
    lr = study.user_attrs[SUGGESTED_LR]
    if lr is None:
        watcher.say("Rates   the range test's loss never fell clearly; strategy.lr stays as it is")
        return dict(space)
    found = centred(space, lr)
    rates = found["lr"]
    assert isinstance(rates, FloatRange)
    watcher.say(f"Rates   the range test suggests {lr:.1e}; searched from {rates.low:.1e} to {rates.high:.1e}")
    return found


def _open_study(config: StudyConfig) -> Study:
    first = StudyDirection.MINIMIZE if config.metric in TASKS[config.task].lower_is_better else StudyDirection.MAXIMIZE
    directions = [first, *(StudyDirection.MINIMIZE for _ in config.costs)]
    try:
        make_folder_of(config.store.url)
        storage = open_storage(absolute_sqlite(config.store.url), requeuing(lambda: config.retries))
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            directions=directions,
            sampler=StudySampler(config.sampler, config.seed),
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
