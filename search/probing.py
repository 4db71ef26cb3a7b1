"""Queued linear probes, trained together: what they share is the whole model but for one layer each."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import takewhile

from optuna.trial import FrozenTrial, TrialState

from search.ledger import Ledger
from search.outcome import MODEL
from search.pausing import RUNGS
from search.recovery import Heartbeat
from search.trial import (
    Asked,
    Bench,
    PrunedError,
    Record,
    Sampled,
    attempt,
    count_trained,
    kill_asked,
    log_plan,
    tell,
    train,
)
from strategies import Fixed, TrialError, UnfreezeError, make_plan
from trainers import Probes, has_linear_head, probe_groups, probe_parts

# Each trial that is asked holds a heartbeat, and what it logs, until all of them have been trained.
_MAX_TOGETHER = 256

logger = logging.getLogger(__name__)


def probes_waiting(bench: Bench, room: int | None) -> int:
    """How many of the trials that are asked next are linear probes of models that end in one linear layer.

    Args:
        bench: What the study's trials share; without ``reuse`` every trial is trained by itself.
        room: How many more trials the budget allows; None for any number.
    """
    pruner = bench.config.pruner
    # Together they report whole epochs, and none can be paused.
    if bench.reuse is None or pruner.name == RUNGS or pruner.reports_per_epoch > 1:
        return 0
    waiting = bench.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    most = _MAX_TOGETHER if room is None else min(room, _MAX_TOGETHER)
    return sum(1 for _ in takewhile(partial(_is_probe, bench), waiting[:most]))


def _is_probe(bench: Bench, trial: FrozenTrial) -> bool:
    params = trial.system_attrs.get("fixed_params", {})
    name = params.get(MODEL, bench.first_source.name)
    if name not in bench.sources:
        return False
    # Of a value that was queued without a depth, the space must leave no other.
    depth = params.get("depth", bench.spaces[name].get("depth"))
    return depth in (0, Fixed(0)) and has_linear_head(bench.sources[name])


def run_probes(bench: Bench, ledger: Ledger, opened: Mapping[Asked, Sampled | Exception]) -> None:
    """Train trials that are linear probes, together those that can be, the others in turn, and tell them all.

    Each scores as it would alone, to rounding. Those trained together are told from best to worst: so no checkpoint is
    written that another of them would push out. When interrupted, all that are not told are told as killed and queued
    again.

    Args:
        bench: What the study's trials share.
        ledger: The study's, which takes the trials in when they were told.
        opened: What each is to train, or why that cannot be sampled.
    """
    untold = list(opened)
    with ExitStack() as beating:
        try:
            for asked in opened:
                beating.enter_context(Heartbeat(asked.trial))
            for asked, trained in _trained(bench, opened):
                ending = attempt(bench, ledger, asked, trained)
                untold.remove(asked)
                tell(bench, ledger, asked, ending, [other.trial.number for other in untold])
        except (KeyboardInterrupt, SystemExit):
            for asked in untold:
                kill_asked(bench, asked)
            raise


def _trained(bench: Bench, opened: Mapping[Asked, Sampled | Exception]) -> Iterator[tuple[Asked, Callable[[], Record]]]:
    """Each trial with what gives its record, or raises how it ended."""
    groups: dict[tuple[str, int], dict[Asked, Sampled]] = defaultdict(dict)
    for asked, sampled in opened.items():
        if isinstance(sampled, Exception):
            yield asked, partial(train, bench, asked, sampled)
        else:
            groups[sampled.source.name, sampled.seed][asked] = sampled
    alone = {asked: sampled for group in groups.values() for asked, sampled in group.items()}
    for group in groups.values():
        ended = _train_together(bench, group)
        for asked, end in sorted(ended.items(), key=lambda item: _rank(bench, item[1])):
            del alone[asked]
            yield asked, partial(_raise, end) if isinstance(end, Exception) else partial(_same, end)
    for asked, sampled in alone.items():
        yield asked, partial(train, bench, asked, sampled)


def _train_together(bench: Bench, group: Mapping[Asked, Sampled]) -> dict[Asked, Record | Exception]:
    """The records of those trials of one model and seed that can be trained with another, or why they ended."""
    first, strategies = next(iter(group.values())), [sampled.strategy for sampled in group.values()]
    companies = [places for places in probe_groups(strategies) if len(places) > 1]
    together = [list(group)[place] for places in companies for place in places]
    chosen = [group[asked].strategy for asked in together]
    found: dict[Asked, Record | Exception] = {}
    try:
        for part, probes in probe_parts(first.source, bench.data, chosen, first.seed, bench.device, bench.reuse):
            found |= _follow(bench, probes, [together[place] for place in part])
    except UnfreezeError as error:
        # Such as of one among them that cannot be applied: in turn each gets its own reason.
        logger.info("linear probes are trained in turn: %s", error)
    return found


def _follow(bench: Bench, probes: Probes, members: Sequence[Asked]) -> dict[Asked, Record | Exception]:
    """Train probes epoch by epoch, reporting each, and stopping those that the pruner stops."""
    found: dict[Asked, Record | Exception] = {}
    for asked, strategy in zip(members, probes.strategies, strict=True):
        plan = make_plan(probes.model, strategy)
        log_plan(bench, asked.run, strategy, plan, f"reuse: one of {len(members)} linear probes trained together")
        found[asked] = Record(bench, asked, strategy.epochs, count_trained(probes.model, plan))
    for epoch in probes:
        for place, result in epoch.items():
            record = found[members[place]]
            assert isinstance(record, Record), "a probe that ended gives nothing more"
            try:
                if isinstance(result, TrialError):
                    raise result
                record.add(result, partial(probes.weights, place))
            except (TrialError, PrunedError) as end:
                found[members[place]] = end
                probes.drop(place)
    return found


def _rank(bench: Bench, end: Record | Exception) -> float:
    if isinstance(end, Exception):
        return math.inf
    return end.best.score if bench.lower_is_better else -end.best.score


def _raise(error: Exception) -> Record:
    raise error


def _same(record: Record) -> Record:
    return record
