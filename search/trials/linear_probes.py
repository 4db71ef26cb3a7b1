"""Queued linear probes, trained together: they share the whole model except one layer each."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import takewhile

from optuna.trial import FrozenTrial

from search.scheduling import CONTINUE, RUNGS, Heartbeat, Ledger, queued_in_turn
from search.storage import MODEL, queued_params
from search.trials.commit import commit, kill_asked
from search.trials.open_study import OpenStudy
from search.trials.record import Asked, Sampled, Trained
from search.trials.training import begin_record, train
from search.trials.trial import attempt
from strategies import Fixed, TrialError, UnfreezeError, make_plan
from trainers import (
    Probes,
    free_memory,
    has_linear_head,
    is_out_of_memory,
    leave_onednn_if_broken,
    probe_groups,
    probe_parts,
)

# Each of these trials keeps a heartbeat, and its logs in memory, until all of them have been trained.
_MAX_TOGETHER = 256

logger = logging.getLogger(__name__)


def probes_waiting(open_study: OpenStudy, room: int | None) -> int:
    """How many trials at the front of the queue are linear probes of models that end in one linear layer.

    Args:
        open_study: What the study's trials share; without ``reuse`` every trial is trained by itself.
        room: Number of trials that the budget still allows; None for any number.
    """
    pruner = open_study.config.pruner
    # Trained together, probes report whole epochs only, and cannot be paused.
    if open_study.materials.reuse is None or pruner.name == RUNGS or pruner.reports_per_epoch > 1:
        return 0
    waiting = queued_in_turn(open_study.study)
    most = _MAX_TOGETHER if room is None else min(room, _MAX_TOGETHER)
    return sum(1 for _ in takewhile(partial(_is_probe, open_study), waiting[:most]))


def _is_probe(open_study: OpenStudy, trial: FrozenTrial) -> bool:
    params = queued_params(trial)
    name = params.get(MODEL, open_study.first_source.name)
    if name not in open_study.materials.sources:
        return False
    # Queued without a depth, a trial is a probe only if the space fixes the depth at 0.
    depth = params.get("depth", open_study.spaces[name].get("depth"))
    return depth in (0, Fixed(0)) and has_linear_head(open_study.materials.sources[name])


def run_probes(open_study: OpenStudy, ledger: Ledger, opened: Mapping[Asked, Sampled | Exception]) -> None:
    """Train linear probes, together where possible and the others in turn, and commit them all.

    Each scores as it would alone, up to rounding. Probes trained together are committed from best to worst, so that no
    checkpoint is written that another of them would push out. After an interrupt, all that are not committed are told
    as killed and queued again.

    Args:
        open_study: What the study's trials share.
        ledger: The study's ledger, which takes the trials in.
        opened: What each trial trains, or why its strategy cannot be sampled.
    """
    untold = list(opened)
    with ExitStack() as beating:
        try:
            for asked in opened:
                beating.enter_context(Heartbeat(asked.trial))
            for asked, training in _trainings(open_study, opened):
                ended = attempt(open_study, ledger, asked, training)
                untold.remove(asked)
                commit(open_study, ledger, asked, ended, [other.trial.number for other in untold])
        except (KeyboardInterrupt, SystemExit):
            for asked in untold:
                kill_asked(open_study, asked)
            raise


def _trainings(
    open_study: OpenStudy, opened: Mapping[Asked, Sampled | Exception]
) -> Iterator[tuple[Asked, Callable[[], Trained]]]:
    """Each trial with a function that trains it, or returns its result where it was trained together with others."""
    groups: dict[tuple[str, int], dict[Asked, Sampled]] = defaultdict(dict)
    for asked, sampled in opened.items():
        if isinstance(sampled, Exception):
            yield asked, partial(train, open_study, asked, sampled)
        else:
            groups[sampled.source.name, sampled.seed][asked] = sampled
    alone = {asked: sampled for group in groups.values() for asked, sampled in group.items()}
    for group in groups.values():
        ended = _train_together(open_study, group)
        for asked, end in sorted(ended.items(), key=lambda item: _rank(open_study, item[1])):
            del alone[asked]
            yield asked, partial(_given, end)
    for asked, sampled in alone.items():
        yield asked, partial(train, open_study, asked, sampled)


def _train_together(open_study: OpenStudy, group: Mapping[Asked, Sampled]) -> dict[Asked, Trained | Exception]:
    """Train together those trials of one model and seed that can be; their results, or why they failed."""
    first, strategies = next(iter(group.values())), [sampled.strategy for sampled in group.values()]
    companies = [places for places in probe_groups(strategies) if len(places) > 1]
    together = [list(group)[place] for places in companies for place in places]
    chosen = [group[asked].strategy for asked in together]
    found: dict[Asked, Trained | Exception] = {}
    materials = open_study.materials
    try:
        for part, probes in probe_parts(
            first.source, materials.data, chosen, first.seed, materials.device, materials.reuse
        ):
            found |= _follow(open_study, probes, [together[place] for place in part])
    except (UnfreezeError, RuntimeError, MemoryError) as error:
        # For example, one strategy cannot be applied. Trained in turn, each trial gets its own reason.
        if not isinstance(error, UnfreezeError) and not is_out_of_memory(error):
            raise
        leave_onednn_if_broken(error)
        logger.info("linear probes are trained in turn: %s", error)
    free_memory()
    return found


def _follow(open_study: OpenStudy, probes: Probes, members: Sequence[Asked]) -> dict[Asked, Trained | Exception]:
    """Train probes epoch by epoch: each result is recorded, and decides whether its probe continues."""
    reuse = f"reuse: one of {len(members)} linear probes trained together"
    records = {
        asked: begin_record(open_study, asked, strategy, probes.model, make_plan(probes.model, strategy), reuse)
        for asked, strategy in zip(members, probes.strategies, strict=True)
    }
    found: dict[Asked, Trained | Exception] = {asked: Trained(record) for asked, record in records.items()}
    for epoch in probes:
        for place, result in epoch.items():
            asked = members[place]
            try:
                if isinstance(result, TrialError):
                    raise result
                records[asked].add(result, partial(probes.weights, place))
                decision = records[asked].decide()
            except TrialError as error:
                found[asked] = error
                probes.drop(place)
                continue
            if decision is not CONTINUE:
                found[asked] = Trained(records[asked], decision)
                probes.drop(place)
    return found


def _rank(open_study: OpenStudy, end: Trained | Exception) -> float:
    if isinstance(end, Exception) or end.decision is not CONTINUE:
        return math.inf
    score = end.record.best.score
    return score if open_study.lower_is_better else -score


def _given(end: Trained | Exception) -> Trained:
    if isinstance(end, Exception):
        raise end
    return end
