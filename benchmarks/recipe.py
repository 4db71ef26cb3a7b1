"""One full fine-tuning by AutoMM's published recipe, to compare with: ``python -m benchmarks.recipe study.yaml``.

AutoGluon's MultiModalPredictor (Tang et al., AutoGluon-Multimodal, AutoML 2024) trains all layers with AdamW, a rate
that falls from each layer to the one below, warm-up and cosine, and clipped gradients, and averages its best three
checkpoints greedily. Images, weights and the loop itself are those of ``benchmarks.plain_loop``.
"""

import argparse
import math
import time
from typing import Any

import optuna
from torch import Tensor

from benchmarks.plain_loop import Lesson, accuracy_with, fine_tune, make_stores, note_winner, prepare, strategy_of
from search import StudyConfig, compose_study

RECIPE: dict[str, Any] = {
    "depth": 1.0,
    "optimizer": "adamw",
    "lr": 1e-4,
    "layer_decay": 0.9,
    "weight_decay": 1e-3,
    "clip_grad": 1.0,
    "epochs": 20,
    "warmup_epochs": 2.0,
    "batch_size": 32,
}
# Checkpoints that are averaged at most.
_TOP = 3
State = dict[str, Tensor]


def run(config: StudyConfig, seconds: float) -> None:
    """Train, and tell the study one trial with the averaged weights' accuracy.

    Args:
        config: The study, whose strategy is the recipe.
        seconds: After so many, no further epoch begins.
    """
    end = time.monotonic() + seconds
    lesson = prepare(config)
    make_stores(config)
    study = optuna.load_study(study_name=config.name, storage=config.store.url)
    trial, best = study.ask(), list[tuple[float, State]]()
    for model, _, accuracy in fine_tune(lesson, strategy_of(dict(config.strategy)), config.seed):
        state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        best = sorted([*best, (accuracy, state)], key=lambda one: -one[0])[:_TOP]
        if time.monotonic() >= end:
            break
    accuracy, state = soup(lesson, best)
    study.tell(trial, accuracy)
    note_winner(config, lesson, state)


def soup(lesson: Lesson, best: list[tuple[float, State]]) -> tuple[float, State]:
    """The greedy mean of checkpoints (Wortsman et al., Model Soups, ICML 2022): each is kept that does no harm.

    Args:
        lesson: The images and the model.
        best: Accuracies and weights, the best first.

    Returns:
        The mean's accuracy and weights.
    """
    (accuracy, mean), *others = best
    count = 1
    for _, other in others:
        tried = {name: ((count * mean[name] + other[name]) / (count + 1)).to(other[name].dtype) for name in mean}
        reached = accuracy_with(lesson, tried, lesson.val)
        if reached >= accuracy:
            accuracy, mean, count = reached, tried, count + 1
    return accuracy, mean


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file, whose strategy is the recipe")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after so many, no further epoch begins")
    options = parser.parse_args()
    run(compose_study([f"study={options.study}"]), options.seconds)


if __name__ == "__main__":
    main()
