"""Training a sampled trial, epoch by epoch, until its end or until a decision pauses or stops it."""

from functools import partial

from torch import nn

from search.processes import time_limit
from search.scheduling import CONTINUE, HOURS_ARE_OVER, Step
from search.storage import LOSSES, SPARED
from search.tracking import TrialPlanned
from search.trials.materials import make_trainer
from search.trials.open_study import OpenStudy
from search.trials.pausing import pause
from search.trials.record import Asked, Record, Sampled, Trained
from search.trials.snapshots import Snapshots, UnfitSnapshotError, resume
from strategies import Plan, Strategy
from trainers import Trainer

# An epoch that begins so few seconds before the end of the search's time begins after a snapshot.
_RISKY_SECONDS = 2.0


def train(open_study: OpenStudy, asked: Asked, sampled: Sampled | Exception) -> Trained:
    """Train a trial by itself to its end, or until it is paused or stopped.

    Args:
        open_study: What the study's trials share.
        asked: The trial.
        sampled: What it trains, or the error of sampling, which is raised.
    """
    if isinstance(sampled, Exception):
        raise sampled
    with time_limit(open_study.config.budget.trial_minutes, open_study.cut_at):
        while True:
            try:
                return _train(open_study, asked, sampled)
            except UnfitSnapshotError as error:
                # The snapshot is removed by now.
                open_study.watcher.say(f"trial {asked.trial.number} starts anew: {error}")


def _train(open_study: OpenStudy, asked: Asked, sampled: Sampled) -> Trained:
    source, strategy, seed = sampled.source, sampled.strategy, sampled.seed
    with open_study.rank_group.training(source.name, strategy, seed) as ranks:
        trainer = make_trainer(open_study.materials, open_study.config.pruner, source, strategy, seed, ranks)
        return _follow(open_study, asked, sampled, trainer)


def _follow(open_study: OpenStudy, asked: Asked, sampled: Sampled, trainer: Trainer) -> Trained:
    """Train epoch by epoch: each result is recorded, and decides whether the trial continues."""
    record = begin_record(open_study, asked, sampled.strategy, trainer.model, trainer.plan, trainer.reused.reason)
    record.epochs, record.spared = trainer.strategy.epochs, trainer.reused.spared
    try:
        decision = resume(open_study, asked, sampled, trainer, record)
        open_study.rank_group.pass_on(trainer)
        snapshots = Snapshots(open_study, asked, sampled, trainer, record)
        epochs = open_study.rank_group.epochs(trainer)
        while decision is CONTINUE and (result := next(epochs, None)) is not None:
            compiled = trainer.forward.reason if open_study.materials.compiler is not None else ""
            # On the device: the best epoch's weights are copied to the CPU once, when the trial has ended.
            record.add(result, partial(trainer.weights, stay=True), trainer.look, compiled, trainer.micro_batches)
            decision = record.decide()
            # The next result would come too late: what is trained until now is kept for the next run.
            if decision is CONTINUE and not record.is_over and open_study.is_out_of_time(result.seconds):
                decision = HOURS_ARE_OVER
                snapshots.write()
            elif decision is CONTINUE and open_study.is_out_of_time(max(_RISKY_SECONDS, 3 * result.seconds)):
                # The next epoch may take longer than this one, and be cut in its middle.
                snapshots.write()
            elif decision is CONTINUE:
                snapshots.write_if_due()
        if decision.step == Step.PAUSE and decision is not HOURS_ARE_OVER:
            decision = pause(open_study, asked, sampled, trainer, record)
        return Trained(record, decision)
    finally:
        if open_study.planner is not None:
            open_study.attributes.put(asked.trial, {LOSSES: record.losses})
        if record.seconds_spared > 0:
            open_study.attributes.put(asked.trial, {SPARED: record.seconds_spared})


def begin_record(
    open_study: OpenStudy, asked: Asked, strategy: Strategy, model: nn.Module, plan: Plan, reuse: str
) -> Record:
    """Announce the plan of a trial, and begin the record of its epochs."""
    count = sum(tensor.numel() for name, tensor in model.named_parameters() if name in plan.trainable)
    open_study.announce(TrialPlanned(asked.run, strategy, plan.manifest(), reuse, count))
    return Record(open_study, asked, strategy.epochs, count)
