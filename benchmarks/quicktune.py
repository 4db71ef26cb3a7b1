"""Quick-Tune's optimizer as a policy: the package quicktunetool in an environment of its own.

quicktunetool 0.0.4 requires numpy below 2 and one version of scikit-learn, and so cannot be installed beside Unfreeze.
``benchmarks/quicktune_server.py`` runs in its environment and answers a line of JSON with a line of JSON.
"""

import json
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.replay import Curves, Fit, Start, Step, Task

SERVER = Path(__file__).with_name("quicktune_server.py")


def quicktune(python: Path, epochs: int, iterations: int) -> Fit:
    """Quick-Tune by its own code.

    Args:
        python: Interpreter of the environment that has quicktunetool.
        epochs: The most that a strategy trains.
        iterations: Passes over the training curves that the fit of each predictor takes at most; quicktunetool's own
            limit is 100.
    """

    def fit(training: Sequence[Curves]) -> Start:
        server = _Server(python)
        table = pd.concat([_table(curves) for curves in training], ignore_index=True)
        server.ask({"fit": table.to_dict(orient="list"), "epochs": epochs, "iterations": iterations})
        return lambda task, seed: _Search(server, task, seed)

    return fit


def _table(curves: Curves) -> pd.DataFrame:
    """Fields with the data set's own, scores, and mean seconds an epoch."""
    table = _features(curves.images, curves.classes, curves.fields)
    table["scores"] = [scores.tolist() for scores in curves.scores]
    table["cost"] = [float(seconds.mean()) for seconds in curves.seconds]
    return table


def _features(images: int, classes: int, fields: pd.DataFrame) -> pd.DataFrame:
    return fields.assign(**{"num-samples": images, "num-classes": classes})


class _Server:
    """A process that holds a fitted optimizer; it ends with this object."""

    def __init__(self, python: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                # Not resolved: a virtual environment's interpreter is a link.
                [python.absolute(), SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder.name,
            )
        # The server's standard input ends with this object, and the server with its input.
        weakref.finalize(self, _end, self._process)

    def ask(self, question: dict[str, Any]) -> Any:
        """The answer to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A server that has ended gives no answer, which is told below.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{SERVER.name} has ended: {self._log.read_text()[-2000:]}")
        return json.loads(answer)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


class _Search:
    """One search by the server's optimizer; the seed decides in which order the strategies are presented to it."""

    def __init__(self, server: _Server, task: Task, seed: int) -> None:
        self._server = server
        self._order = np.random.default_rng(seed).permutation(len(task.fields))
        self._place = np.argsort(self._order)
        fields = _features(task.images, task.classes, task.fields).iloc[self._order]
        server.ask({"setup": fields.to_dict(orient="list"), "seed": seed})

    def choose(self) -> int | None:
        """What the optimizer asks for."""
        return int(self._order[self._server.ask({"ask": True})])

    def tell(self, step: Step) -> None:
        """Tell the optimizer the score."""
        told = {"strategy": int(self._place[step.strategy]), "epoch": step.epoch}
        self._server.ask({"tell": told | {"score": step.score, "ended": step.ended}})
