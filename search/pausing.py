"""Trials that are paused at a rung, and go on from there when they are among the best."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna import Study

from search.config import PrunerConfig
from search.going_on import paused_state_of, write_state
from search.ledger import Ledger
from search.outcome import CONTINUES, PAUSED, SEED
from search.recovery import queue_again
from search.rungs import Rungs
from trainers import ShortEpochs, StateError, Trainer

if TYPE_CHECKING:
    from search.trial import Asked, Bench, Record, Sampled

RUNGS = "rungs"


def short_epochs(pruner: PrunerConfig, epochs: int) -> ShortEpochs | None:
    """The epochs of a trial up to the first rung, if they see a share of the images; a trial without rungs has none."""
    if pruner.low_rung_images == 1 or epochs <= pruner.first_rung:
        return None
    return ShortEpochs(pruner.first_rung, pruner.low_rung_images)


def seed_before(study: Study, attrs: Mapping[str, Any]) -> int | None:
    """The seed of the trial that one with these attributes goes on with; None for one that begins."""
    if CONTINUES not in attrs:
        return None
    return int(study.get_trials(deepcopy=False)[attrs[CONTINUES]].user_attrs[SEED])


def pause(bench: "Bench", asked: "Asked", sampled: "Sampled", trainer: Trainer, record: "Record") -> str:
    """Keep what a trial needs to go on, and return what is said of its end.

    Where it cannot be kept, which is said, the trial just ends.
    """
    epoch = trainer.epoch
    try:
        write_state(sampled, trainer, record, paused_state_of(bench, asked.trial.number))
    except StateError as error:
        bench.watcher.say(f"trial {asked.trial.number} cannot go on later: {error}")
        return f"stopped at epoch {epoch}"
    asked.trial.set_user_attr(PAUSED, epoch)
    return f"paused at epoch {epoch}"


def promote(bench: "Bench", ledger: Ledger) -> bool:
    """Queue the paused trial that is to go on next, if there is one, and say whether there was.

    The study's lock is to be held: of two processes that find the same trial the second must see that it is queued.
    """
    if bench.config.pruner.name != RUNGS or not bench.paused.is_dir():
        return False
    due = Rungs.of(bench.config.pruner).due(
        bench.study.get_trials(deepcopy=False),
        bench.study.direction,
        lambda trial: paused_state_of(bench, trial.number).exists(),
    )
    if due is None:
        return False
    queue_again(bench.study, due, {CONTINUES: due.number})
    ledger.refresh()
    return True


def drop_paused(bench: "Bench", ledger: Ledger, is_over: bool = False) -> None:
    """Remove what was kept of trials that cannot go on within the budget.

    Args:
        bench: What the study's trials share.
        ledger: The study's.
        is_over: Whether no more strategies will be drawn.
    """
    if not bench.paused.is_dir():
        return
    # Listed first: whatever is written later belongs to a trial that the study already has.
    files = [file for file in bench.paused.iterdir() if file.stem.isdecimal()]
    budget = bench.config.budget.trials
    to_come = 0 if is_over else None if budget is None else max(0, budget - ledger.counted)
    needed = Rungs.of(bench.config.pruner).needed(
        bench.study.get_trials(deepcopy=False), bench.study.directions[0], to_come
    )
    for file in files:
        if int(file.stem) not in needed:
            file.unlink(missing_ok=True)
