"""Asking for a trial, and sampling its strategy."""

import hashlib
from collections.abc import Mapping

from optuna.trial import Trial

from search.processes import owner
from search.scheduling import Ledger, ask_in_turn, short_epochs
from search.storage import (
    ATTEMPT,
    DEPTH,
    FINGERPRINT,
    MODEL,
    OWNER,
    PREDICTED,
    PRESET,
    SEED,
    STRATEGY,
    write_attributes,
)
from search.tracking import TrialAsked, TrialStarted, new_run_key
from search.trials.open_study import OpenStudy
from search.trials.pausing import seed_before
from search.trials.record import Asked, Sampled
from strategies import Strategy, one_line, sample
from trainers import ModelSource


def ask(open_study: OpenStudy) -> Asked:
    """Ask for the next trial and begin its run."""
    trial = ask_in_turn(open_study.study)
    trial.set_user_attr(OWNER, owner())
    asked = Asked(trial, new_run_key())
    open_study.announce(TrialAsked(trial.number, asked.run))
    return asked


def open_trial(open_study: OpenStudy, ledger: Ledger, asked: Asked, alike: Mapping[str, int]) -> Sampled:
    """Sample a trial's strategy and announce it.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger.
        asked: The trial.
        alike: By fingerprint, how many trials that this process claims together with this one train the same.
    """
    trial, attrs = asked.trial, asked.trial.user_attrs
    source = _choose_model(open_study, trial)
    strategy = sample(open_study.spaces[source.name], trial)
    canonical = strategy.canonical(source.num_blocks)
    fingerprint = fingerprint_of(open_study, source, strategy)
    # All strategies get the same seed, so that they are compared fairly; a repeated strategy gets the next seed.
    seed = seed_before(open_study.study, attrs)
    if seed is None:
        seed = open_study.config.seed + ledger.times_tried(fingerprint) + alike.get(fingerprint, 0)
    # Written at once: the next process to ask counts it.
    write_attributes(trial, {FINGERPRINT: fingerprint})
    short = short_epochs(open_study.config.pruner, canonical.epochs)
    open_study.announce(
        TrialStarted(
            number=trial.number,
            run=asked.run,
            strategy=strategy,
            label=one_line(canonical, source.name if open_study.chooses_model else ""),
            model=source.name,
            weights=source.weights.source,
            weights_digest=source.weights.digest,
            depth=int(canonical.depth),
            seed=seed,
            fingerprint=fingerprint,
            attempt=int(attrs.get(ATTEMPT, 0)),
            preset=attrs.get(PRESET) or "",
            low_rung_images=short.images if short is not None else None,
            predicted=attrs.get(PREDICTED),
        )
    )
    open_study.attributes.put(trial, {STRATEGY: strategy.to_dict(), DEPTH: int(canonical.depth), SEED: seed})
    return Sampled(source, strategy, seed, fingerprint)


def _choose_model(open_study: OpenStudy, trial: Trial) -> ModelSource:
    """Draw the model if there are several."""
    name = open_study.first_source.name
    if open_study.chooses_model:
        # Sorted, so that a list in another order is the same choice to Optuna.
        name = trial.suggest_categorical(MODEL, sorted(open_study.materials.sources))
    return open_study.materials.sources[name]


def fingerprint_of(open_study: OpenStudy, source: ModelSource, strategy: Strategy) -> str:
    """Twelve hexadecimal digits, equal for trials that train alike: the same strategy on the same model."""
    fingerprint = strategy.fingerprint(source.num_blocks)
    if not open_study.chooses_model:
        return fingerprint
    return hashlib.sha256(f"{source.name} {fingerprint}".encode()).hexdigest()[: len(fingerprint)]
