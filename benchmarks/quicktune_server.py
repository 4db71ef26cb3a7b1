# /// script
# requires-python = ">=3.11"
# dependencies = ["quicktunetool==0.0.4", "requests"]
# ///
"""Quick-Tune's optimizer, asked by lines of JSON. Runs in an environment of its own and imports nothing of Unfreeze."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
from ConfigSpace import ConfigurationSpace
from qtt import CostPredictor, PerfPredictor, QuickOptimizer


class Optimizer:
    """The optimizer of quicktunetool, fitted once and then set up for each search."""

    def fit(self, rows: dict[str, list[Any]], epochs: int, iterations: int) -> None:
        """Fit both predictors by their own code."""
        table = pd.DataFrame(rows)
        scores = np.full((len(table), epochs), np.nan)
        for row, curve in zip(scores, table["scores"], strict=True):
            row[: len(curve)] = curve[:epochs]
        features = _objects(table.drop(columns=["scores", "cost"]))
        limits = {"max_iter": iterations}
        self._epochs = epochs
        self._perf = PerfPredictor(fit_params=limits, path=str(Path.cwd() / "perf"), seed=0, verbosity=0)
        self._perf.fit(features.copy(), scores)
        self._cost = CostPredictor(fit_params=limits, path=str(Path.cwd() / "cost"), seed=0, verbosity=0)
        self._cost.fit(features.copy(), table[["cost"]].to_numpy())

    def setup(self, fields: dict[str, list[Any]], seed: int) -> None:
        """Begin a search among strategies."""
        self._optimizer = QuickOptimizer(
            ConfigurationSpace(),
            self._epochs,
            self._perf,
            self._cost,
            cost_aware=True,
            path=str(Path.cwd() / "optimizer"),
            seed=seed,
            verbosity=0,
        )
        self._optimizer.setup_pandas(_objects(pd.DataFrame(fields)))

    def ask(self) -> int:
        """The strategy whose next epoch is wanted."""
        # The optimizer counts itself as finished once every strategy has been begun; paused ones can go on.
        self._optimizer.finished = False
        asked = self._optimizer.ask()
        assert asked is not None, "it is not finished"
        return int(asked["config-id"])

    def tell(self, strategy: int, epoch: int, score: float, ended: bool) -> None:
        """The score of an epoch, and whether it was the strategy's last."""
        self._optimizer.tell({"config-id": strategy, "fidelity": epoch, "score": score, "status": True})
        if ended:
            self._optimizer.stoped.add(strategy)


def _objects(table: pd.DataFrame) -> pd.DataFrame:
    """Words as objects: quicktunetool drops columns of pandas' own type of words."""
    words = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return table.astype(dict.fromkeys(words, object))


def main() -> None:
    """Answer until the input ends."""
    # Quick-Tune's predictors print; only answers go to the standard output.
    answers, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    # The cost predictor writes to the user's cache.
    os.environ["HOME"] = str(Path.cwd())
    optimizer = Optimizer()
    # Exact Cholesky instead of conjugate gradients: the same posterior, several times faster at this size.
    with gpytorch.settings.max_cholesky_size(10_000):
        for line in sys.stdin:
            question = json.loads(line)
            answer = None
            if "fit" in question:
                optimizer.fit(question["fit"], question["epochs"], question["iterations"])
            elif "setup" in question:
                optimizer.setup(question["setup"], question["seed"])
            elif "ask" in question:
                answer = optimizer.ask()
            else:
                optimizer.tell(**question["tell"])
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
