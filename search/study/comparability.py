"""What makes trials comparable: a study refuses to resume when any of it has changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from search.config import StudyConfig
from search.storage import IDENTITY
from strategies import Choice, ConfigError, Entry, Fixed, FloatRange, IntRange, Space
from trainers import ImageData, ModelSource

# Values of keys that studies of earlier versions lack.
_BEFORE = {"pruner.reports_per_epoch": 1, "pruner.low_rung_images": 1.0}


def identity(config: StudyConfig, data: ImageData, sources: Sequence[ModelSource]) -> dict[str, Any]:
    """The facts that all trials of a study have in common, by the key that a user would change.

    Several models are listed in alphabetical order, since their order does not matter.
    """
    digests = {source.name: source.weights.digest for source in sorted(sources, key=lambda source: source.name)}
    names: list[str] = list(digests)
    code = {source.name: source.architecture for source in sources if source.code is not None}
    return {
        "task": config.task,
        "metric": config.metric,
        # Only if there are costs, since studies of earlier versions lack the key.
        **({"costs": list(config.costs)} if config.costs else {}),
        "pruner.reports_per_epoch": config.pruner.reports_per_epoch,
        "pruner.low_rung_images": config.pruner.low_rung_images,
        "data.image_size": config.data.image_size,
        "data.max_value": config.data.max_value,
        "data (fingerprint)": data.fingerprint,
        "model.name": names if len(names) > 1 else names[0],
        **({"model.decoder": config.model.decoder} if config.model.decoder is not None else {}),
        **({"model.name (the user's files)": code} if code else {}),
        "model.in_chans": config.model.in_chans,
        "model.weights (digest)": digests if len(names) > 1 else digests[names[0]],
    }


def check_identity(study: Study, found: Mapping[str, Any]) -> None:
    """Record the identity of a new study; refuse to resume a study that has another identity.

    Raises:
        ConfigError: Names what differs and offers a new study name.
    """
    recorded = study.user_attrs.get(IDENTITY)
    if recorded is None:
        study.set_user_attr(IDENTITY, dict(found))
        return
    before = {**_BEFORE, **recorded}
    differs = [f"{key}: {before.get(key)} -> {value}" for key, value in found.items() if before.get(key) != value]
    if differs:
        raise ConfigError(
            f"study {study.study_name!r} has trials that would not be comparable; these keys changed:\n  "
            + "\n  ".join(differs)
            + f"\nUse the earlier values, or begin a new study with name={study.study_name}-2"
        )


def check_space(study: Study, space: Space) -> None:
    """Refuse a space that Optuna cannot combine with the trials of the study.

    Ranges may move; a field may become fixed or searched. A field's list of choices must stay, and a range must stay a
    range.

    Raises:
        ConfigError: Names the field and offers a new study name.
    """
    for trial in study.get_trials(deepcopy=False):
        for name, old in trial.distributions.items():
            new = space.get(name)
            if new is None or isinstance(new, Fixed):
                continue
            try:
                check_distribution_compatibility(old, _distribution(new))
            except ValueError as error:
                raise ConfigError(
                    f"strategy.{name}: study {study.study_name!r} has trials that drew it from {_in_words(old)}; keep "
                    f"that, or begin a new study with name={study.study_name}-2"
                ) from error


def _distribution(entry: Entry) -> BaseDistribution:
    match entry:
        case Choice(choices=choices):
            return CategoricalDistribution(choices)
        case IntRange(low=low, high=high, step=step, log=log):
            return IntDistribution(low, high, log, step)
        case FloatRange(low=low, high=high, step=float_step, log=log):
            return FloatDistribution(low, high, log, float_step)
        case Fixed(value=value):
            return CategoricalDistribution((value,))


def _in_words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"choices {list(distribution.choices)}"
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return f"a range from {distribution.low:g} to {distribution.high:g}{' (log)' if distribution.log else ''}"
