"""Weights mixed after a search: interpolations with the starting weights, and soups."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna.trial import FrozenTrial
from safetensors.torch import load_file
from torch import Tensor, nn

from search.scheduling import ranked
from search.storage import CHECKPOINT, RUN_ID, SEED, STRATEGY, score_of
from search.trials import OpenStudy
from search.winner.winner import GREEDY_SOUP, TRIAL, UNIFORM_SOUP, WISE_FT, Candidate
from strategies import Strategy, UnfreezeError, make_plan, resize, shown_size
from trainers import (
    TASKS,
    FrozenOutputs,
    ModelSource,
    Normalise,
    Setting,
    Split,
    State,
    Trainer,
    check_alike,
    greedy_soup,
    interpolate,
    load_mixed,
    normaliser,
    predict,
    random_at_start,
    uniform_soup,
)

_ALPHAS = tuple(k / 10 for k in range(1, 10))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judge:
    """Loads weights into one model and scores them as the best trial was scored.

    Args:
        open_study: Gives data, metric and device.
        source: Source of the best trial's model.
        strategy: The best trial's strategy: its views (``tta``) and batch size.
        seed: The best trial's seed.
        weights: The best trial's weights, on the CPU.
        model: The model, on the device.
        normalise: Normalises the model's input.
    """

    open_study: OpenStudy
    source: ModelSource
    strategy: Strategy
    seed: int
    weights: State
    model: nn.Module
    normalise: Normalise

    def load(self, weights: State) -> None:
        """Load weights as they are."""
        self.model.load_state_dict(weights)

    def load_mixed(self, weights: State) -> None:
        """Load weights and fit the BatchNorm statistics that they do not share with the best trial's."""
        open_study, batch_size = self.open_study, self.strategy.batch_size
        train, seed, device = open_study.materials.data.train, open_study.config.seed, open_study.materials.device
        size = shown_size(open_study.materials.data.preprocessing.image_size, self.strategy)
        load_mixed(
            self.model,
            weights,
            self.weights,
            train,
            batch_size,
            lambda images: self.normalise(resize(images, size)),
            seed,
            device,
        )

    def outputs(self, split: Split, stored: FrozenOutputs | None = None) -> tuple[Tensor, Tensor]:
        """Outputs and targets of a split; see :func:`trainers.predict`."""
        task = TASKS[self.open_study.materials.data.task]
        scale = task.scale(self.open_study.materials.data.train.targets)
        return predict(
            self.model, split, self.strategy, self.normalise, task, scale, self.open_study.materials.device, stored
        )

    def stored_outputs(self) -> FrozenOutputs | None:
        """The stored outputs of the best trial's frozen blocks for validation, if any; its weights must be loaded."""
        return (
            None
            if self.open_study.materials.reuse is None
            else self.open_study.materials.reuse.stored(self._setting(), "val")
        )

    def _setting(self) -> Setting:
        """Everything that stored outputs depend on: where the model is frozen, and its input."""
        shown = ("depth", "depth_from", "image_scale", "tta")
        strategy = Strategy(**{name: getattr(self.strategy, name) for name in shown}).canonical(self.source.num_blocks)
        open_study, plan = self.open_study, make_plan(self.model, strategy)
        return Setting(
            self.source,
            self.model,
            plan,
            strategy,
            self.seed,
            open_study.materials.data,
            self.normalise,
            open_study.materials.device,
        )

    def score(self, weights: State) -> float:
        """The study's metric of mixed weights on validation."""
        self.load_mixed(weights)
        return TASKS[self.open_study.materials.data.task].scores(*self.outputs(self.open_study.materials.data.val))[
            self.open_study.config.metric
        ]


def make_judge(open_study: OpenStudy, trial: FrozenTrial, weights: State) -> Judge:
    """A judge for a study whose best trial has these weights."""
    source = open_study.source_of(trial)
    model = source.build(open_study.config.seed).to(open_study.materials.device.torch)
    model.to(memory_format=torch.channels_last)
    strategy = Strategy.from_dict(trial.user_attrs[STRATEGY]).canonical(source.num_blocks)
    # Earlier versions stored the seed with the run alone.
    seed = trial.user_attrs.get(SEED)
    if seed is None:
        seed = open_study.tracker.reader.params(trial.user_attrs[RUN_ID])[SEED]
    return Judge(
        open_study,
        source,
        strategy,
        int(seed),
        weights,
        model,
        normaliser(source.mean, source.std, open_study.materials.device),
    )


def scored_images(open_study: OpenStudy) -> int:
    """How many images the end of a search scores, at most: those of test and, for each candidate, of validation."""
    after, data = open_study.config.after, open_study.materials.data
    candidates = 1 + after.wise_ft * len(_ALPHAS) + after.soups * (1 + open_study.config.checkpoints.keep)
    return len(data.test) + candidates * len(data.val)


def soup_trials(open_study: OpenStudy) -> list[FrozenTrial]:
    """The trials whose checkpoints are kept, from best to worst."""
    best = ranked(open_study.study)[: open_study.config.checkpoints.keep]
    return [trial for trial in best if trial.user_attrs.get(CHECKPOINT)]


def choose(judge: Judge, trial: FrozenTrial, folder: Path) -> tuple[State, tuple[Candidate, ...], Candidate]:
    """Score the best trial and the mixtures on validation, and choose.

    Args:
        judge: Holds the best trial's weights.
        trial: The best trial.
        folder: For checkpoints.

    Returns:
        The chosen weights, on the CPU; all candidates in the order of scoring, the trial first; and the chosen one. Of
        equal candidates the first is chosen, so that the trial only loses to a better one.
    """
    after, lower_is_better = judge.open_study.config.after, judge.open_study.lower_is_better
    best = Candidate(TRIAL, (trial.number,), score if (score := score_of(trial)) is not None else float("nan"))
    if not (after.wise_ft or after.soups):
        return judge.weights, (best,), best
    # Scored again, because this device may differ from the trial's in the last digits.
    best = Candidate(TRIAL, (trial.number,), judge.score(judge.weights))
    chosen, found = judge.weights, [best]
    for kind, trials, weights in _mixtures(judge, trial, folder):
        candidate = Candidate(kind, trials, judge.score(weights))
        found.append(candidate)
        if candidate.score < best.score if lower_is_better else candidate.score > best.score:
            # With the BatchNorm statistics that were fitted.
            best, chosen = candidate, _on_cpu(judge.model)
    return chosen, tuple(found), best


def _mixtures(judge: Judge, trial: FrozenTrial, folder: Path) -> Iterator[tuple[str, tuple[int, ...], State]]:
    if judge.open_study.config.after.wise_ft:
        for alpha, weights in _interpolations(judge):
            yield WISE_FT.format(alpha), (trial.number,), weights
    if judge.open_study.config.after.soups:
        members = _fetch_members(judge, trial, folder)
        if len(members) == 1:
            logger.warning("after.soups: only trial %d has a kept checkpoint, so there is no soup", trial.number)
            return

        def states() -> Iterator[State]:
            return (load() for load in members.values())

        yield UNIFORM_SOUP, tuple(members), uniform_soup(states())
        soup, places = greedy_soup(states(), judge.score, judge.open_study.lower_is_better)
        yield GREEDY_SOUP, tuple(tuple(members)[place] for place in places), soup


def _interpolations(judge: Judge) -> Iterator[tuple[float, State]]:
    open_study = judge.open_study
    # A new trainer holds the weights that the trial started from, a probed head included.
    start = Trainer(
        judge.source,
        open_study.materials.data,
        judge.strategy,
        judge.seed,
        open_study.materials.device,
        open_study.materials.teacher,
    ).weights()
    kept = random_at_start(judge.model, judge.strategy)
    if all(torch.equal(start[name], tensor) for name, tensor in judge.weights.items() if name not in kept):
        logger.warning("after.wise_ft: the best trial trained only the head, so there is nothing to interpolate")
        return
    for alpha in _ALPHAS:
        yield alpha, interpolate(start, judge.weights, alpha, kept)


def _fetch_members(judge: Judge, trial: FrozenTrial, folder: Path) -> dict[int, Callable[[], State]]:
    """Readers of weights by trial, from best to worst, without checkpoints that are gone or do not fit."""
    members: dict[int, Callable[[], State]] = {trial.number: lambda: judge.weights}
    for other in soup_trials(judge.open_study):
        if other.number in members or judge.open_study.source_of(other) is not judge.source:
            continue
        place = folder / str(other.number)
        place.mkdir()
        try:
            path = judge.open_study.tracker.reader.fetch_checkpoint(other.user_attrs[RUN_ID], place)
            check_alike(judge.weights, load_file(path))
        except UnfreezeError as error:
            logger.warning("after.soups: without trial %d: %s", other.number, error)
            continue
        members[other.number] = lambda path=path: load_file(path)  # type: ignore[misc]
    return members


def _on_cpu(model: nn.Module) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
