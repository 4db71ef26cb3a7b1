"""Choosing a study: look at the images, the device and the weights, measure, choose, and write the study file."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.auto.candidates import candidates
from search.auto.content import content_of, name_of, write_study
from search.auto.rule import Choice, Facts, Measured, choose
from search.auto.words import effort_of, key_of
from search.config import (
    TIMES,
    BudgetConfig,
    DataConfig,
    StudyConfig,
    as_study,
    check_section,
    compose_study,
    configure,
    given_by,
    load_study,
    sqlite_file,
)
from search.reporting import duration
from search.storage import fetch_uri
from search.study import check_places, fitting_size, has_begun, with_seconds
from strategies import ConfigError, Strategy
from trainers import (
    Device,
    Guess,
    ModelSource,
    Survey,
    check_model_name,
    choose_device,
    find_weights,
    guess_data,
    measure_speed,
    survey,
    top_of,
    trained_size,
)

# Where nothing is said of the time.
_HOURS = 1.0
# Seconds to open the stores, and from the last trial to the end.
_OVERHEAD = 25.0
# Reading all images may take so much of the time.
_READING = 0.25
# A speed is measured on images of at most this size where there is no GPU, with so many images a batch, and more of
# smaller images: a batch that is too small for the cores is slower than those of the search.
_MEASURED_SIZE, _MEASURED_BATCH, _LARGEST_BATCH = 128, 8, 32
# A heavier model is measured where the usual one's full trials fit so many times into the time.
_WORTH_MEASURING = 8
# Effort "best" shows images so much larger than the weights saw, where the images are as large.
_LARGER = 1.3
_DENSE = ("segmentation", "detection")
# Places whose relative paths are those of the working folder.
_PATHS = ("root", "masks", "annotations", "manifest")


def choose_study(words: Sequence[str], began: float, say: Callable[[str], None], writes: bool) -> StudyConfig:
    """The configuration of a study that suits the images, the machine and the time.

    Every key of the words stands. A study that was chosen before for the same images is used again.

    Args:
        words: The words of the command line.
        began: When the command began, on ``time.monotonic``.
        say: Shows a line.
        writes: Whether the study file is written.

    Raises:
        ConfigError: A word is wrong, or no model can be had.
        DataError: The images cannot be found, or nothing says what is to be learnt.
    """
    effort = effort_of(words)
    # What a word says of these is in the content; a path may have become another.
    within = {"study", "effort", "name", "task", *(f"data.{name}" for name in _PATHS)}
    given = given_by([word for word in words if key_of(word) not in ("study", "effort")])
    rest = [word for word in words if key_of(word) not in within]
    data, budget = _section(given, "data"), _budget_of(_section(given, "budget"))
    # What is wrong with them is refused before anything is looked at; the other keys may depend on the task.
    check_section("data", DataConfig, data)
    check_section("budget", BudgetConfig, {**_section(given, "budget"), **budget})
    named: dict[str, Any] = {key: given[key] for key in ("name", "task") if key in given}
    guess = guess_data(data)
    place: dict[str, Any] = {**data, **guess.data}
    place |= {name: _absolute(place[name]) for name in _PATHS if place.get(name) is not None}
    content: dict[str, Any] = {
        "name": name_of(data, effort),
        "task": guess.task,
        "data": place,
        "budget": budget,
        **named,
    }
    draft = configure(content, rest, {})
    check_places(draft)
    draft, file, has_file = _place_of(draft, is_named="name" in given)
    if has_file:
        say(f"Auto    {file} was chosen before and is used again; name=... chooses anew")
        return compose_study([f"study={file}", *rest])
    content["name"] = draft.name
    found = survey(draft.task, **draft.data.model_dump())
    device = choose_device(draft.device, draft.precision)
    facts = _facts_of(draft, found, device, began, effort)
    models = _measured(draft, _section(given, "model"), found, facts, device)
    choice = choose(facts, models)
    lines = _lines(draft, guess, found, device, choice, facts)
    study = as_study(content_of(content, choice, facts, found), rest)
    if writes:
        write_study(file, study, lines)
        lines.append(f"File    {file}: study={file} repeats it, and every key can be given")
    for line in lines:
        say(line)
    return configure(study, [], {})


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(inner) for key, inner in value.items()}
    return str(Path(value).expanduser().absolute()) if isinstance(value, str) else value


def _section(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of a section; none where it was given as something else, which the schema refuses."""
    found = given.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def _budget_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The time that is given, or an hour; trials have no number unless one is given."""
    timed = {name: asked[name] for name in TIMES if asked.get(name) is not None}
    return {"trials": asked.get("trials"), **(timed or {"hours": _HOURS})}


def _place_of(draft: StudyConfig, is_named: bool) -> tuple[StudyConfig, Path, bool]:
    """The study under a name of its own, its file, and whether the file is there, chosen for the same images.

    Raises:
        ConfigError: The name was given, and belongs to other images.
    """
    database = sqlite_file(draft.store.url)
    folder = (Path(database).parent if database else Path(draft.data.cache).parent) / "auto"
    first, number = draft.name, 1
    while True:
        file = folder / f"{draft.name}.yaml"
        if file.is_file():
            stored = load_study(file).get("data") or {}
            own = draft.data.model_dump()
            if all(stored.get(name) == own[name] for name in (*_PATHS, "dataset", "shards")):
                return draft, file, True
        elif not has_begun(draft):
            return draft, file, False
        if is_named:
            raise ConfigError(f"name: there is a study {draft.name!r} of other images or choices; give another name")
        number += 1
        draft = draft.model_copy(update={"name": f"{first}-{number}"})


def _facts_of(draft: StudyConfig, found: Survey, device: Device, began: float, effort: str) -> Facts:
    """How many images there are to learn from, and how much time."""
    seconds = with_seconds(draft, began).budget.seconds or _HOURS * 3600
    left = max(1.0, seconds - (time.monotonic() - began) - _OVERHEAD)
    images, data = max(1, sum(found.counts.values())), draft.data
    counts = {split: found.counts.get(split, 0) for split in ("train", "val", "test")}
    for split, share in (("val", data.val_fraction), ("test", data.test_fraction)):
        if not counts[split]:
            counts[split] = round(found.counts.get("train", 0) * share)
            counts["train"] -= counts[split]
    # Reading and decoding come before the search; of very many images, a part is read.
    readable = _READING * left / max(1e-9, found.decode_seconds)
    share = min(1.0, readable / images)
    limits = {split: getattr(data, f"limit_{split}") or count for split, count in counts.items()}
    used = {split: max(1, min(limits[split], int(count * share))) for split, count in counts.items()}
    return Facts(
        dense=draft.task in _DENSE,
        counts=counts,
        train=used["train"],
        val=used["val"],
        test=used["test"],
        classes=found.classes or 2,
        seconds=max(1.0, left - images * share * found.decode_seconds),
        has_gpu=device.torch.type == "cuda",
        effort=effort,
    )


def _measured(
    draft: StudyConfig, asked: Mapping[str, Any], found: Survey, facts: Facts, device: Device
) -> list[Measured]:
    """The models that can be had with their speeds: those that are asked for, else all that the time may hold."""
    if asked.get("name") is not None:
        models = [(name, draft.model.weights) for name in draft.model.names]
    elif asked.get("weights") is not None:
        models = [(name, (form,)) for name, form in candidates() if form in draft.model.weights]
        if not models:
            raise ConfigError("model.weights: study=auto does not know whose weights these are; give model.name too")
    else:
        models = [(name, (form,)) for name, form in candidates()]
    measured: list[Measured] = []
    for name, weights in models:
        check_model_name(name)
        measured.append(_measure(draft, name, weights, found, facts, device))
        if choose(facts, measured[:1]).full_seconds * _WORTH_MEASURING > facts.seconds:
            break
    return measured


def _measure(
    draft: StudyConfig, name: str, forms: Sequence[str], found: Survey, facts: Facts, device: Device
) -> Measured:
    """Train and score a few images."""
    weights = find_weights(name, forms, lambda uri: fetch_uri(uri, draft.tracking.uri), beside=draft.model.names)
    size = draft.data.image_size or _size_for(trained_size(name, weights), found.short_side, facts.effort)
    measured = size if facts.has_gpu else min(size, _MEASURED_SIZE)
    decoder, channels = draft.model.decoder, channels_for(found)
    top = top_of(draft.task, decoder, facts.classes, measured)
    source = ModelSource(name, weights, facts.classes, measured, channels, top)
    batch = max(_MEASURED_BATCH, min(_LARGEST_BATCH, _MEASURED_BATCH * _MEASURED_SIZE**2 // measured**2))
    speed = measure_speed(source, draft.task, Strategy(depth=1.0, batch_size=batch), device)
    return Measured(name, weights.source, measured, speed.train_seconds, speed.score_seconds).at(size)


def _size_for(own: int, side: int | None, effort: str) -> int:
    """Side of images that suits weights and images; larger where there is time for the best."""
    usual = fitting_size(own, side)
    return fitting_size(int(own * _LARGER) // 32 * 32, side) if effort == "best" else usual


def channels_for(found: Survey) -> int:
    """Channels of the model's images: grey images are shown in colours, as the weights saw images."""
    return found.channels if found.channels not in (1, 3) else 3


def _lines(draft: StudyConfig, guess: Guess, found: Survey, device: Device, choice: Choice, facts: Facts) -> list[str]:
    """What was found and chosen, and why."""
    images, model = sum(found.counts.values()), choice.model
    kind = {1: "grey", 3: "in colours"}.get(found.channels, f"of {found.channels} channels")
    classes = f", {found.classes} classes or targets" if found.classes else ""
    updates = choice.epochs * -(-choice.train // choice.batch_size)
    part = "" if choice.train == facts.counts["train"] else f", of which {choice.train:,} are trained on"
    side = "unknown" if found.short_side is None else f"{found.short_side} px"
    return [
        f"Auto    task {draft.task}{f' ({guess.why})' if guess.why else ''}: {images:,} images {kind}{classes}{part}",
        f"Device  {device.description}, {device.free_bytes / 2**30:.0f} GiB free",
        f"Model   {model.name} ({model.weights}), {1 / model.train_seconds:,.0f} images/s in training: {choice.why}",
        f"Size    {model.size} px: the images' median short side is {side}",
        f"Epochs  {choice.epochs} in batches of {choice.batch_size}: {updates:,} updates a trial",
        f"Trials  about {choice.trials:,.0f} in {duration(facts.seconds)}; one of all blocks takes "
        f"{duration(choice.full_seconds)}",
    ]
