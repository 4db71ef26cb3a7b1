"""Train a logged trial once more and compare: ``python -m search.rerun RUN_ID [key=value ...]``.

A trial alone is reproduced from what its run says: the study's configuration, the strategy, the seed. The stores are
only read.
"""

import argparse
import logging
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.command_line import FAILED, exit_code
from search.config import compose_study
from search.processes import importing
from strategies import ConfigError

_USAGE = """\
A run is that of a trial; MLflow shows its id. What search.compare says serves as well: of a trial that was told while
MLflow was away, that is its tag unfreeze.spool_key. Keys of the study may be given anew, in the grammar of search.run:
where the stores and the images are now (tracking.uri, data.root), device, threads.

The exit code is 0 where all epochs agree, 1 where they do not, 2 after bad input. On the machine of the trial, with as
many threads, they agree to the last digit; elsewhere, to rounding."""

# What the rounding of another machine may do in a short training; on the same machine nothing differs.
_TOLERANCE = 1e-4
_STORE = "sqlite:///mlruns/mlflow.db"


@dataclass(frozen=True, slots=True)
class Logged:
    """What a trial's run says.

    Args:
        study: Content of the study's ``study.json``.
        strategy: Content of the trial's ``strategy.yaml``.
        model: Name of the model.
        seed: Of the training.
        metrics: By step, the metrics that training anew gives again.
    """

    study: str
    strategy: str
    model: str
    seed: int
    metrics: Mapping[int, Mapping[str, float]]


def read_run(tracking_uri: str, run_id: str) -> Logged:
    """Read a trial's run and what it needs of its study's.

    Raises:
        ConfigError: The store has no such run, or it is none of a trial's that was sampled.
    """
    from search.config import without_password
    from search.storage import MODEL, SEED, reading_mlflow
    from search.tracking import PARENT_TAG, find_run

    shown = without_password(tracking_uri)
    with reading_mlflow(tracking_uri, f"run {run_id}") as client, tempfile.TemporaryDirectory() as folder:
        run = client.get_run(find_run(client, run_id) or run_id)
        run_id = run.info.run_id
        parent = run.data.tags.get(PARENT_TAG)
        if parent is None or SEED not in run.data.params:
            raise ConfigError(f"run {run_id} at {shown} is not that of a trial that was trained")
        study = Path(client.download_artifacts(parent, "study.json", folder)).read_text(encoding="utf-8")
        strategy = Path(client.download_artifacts(run_id, "strategy.yaml", folder)).read_text(encoding="utf-8")
        metrics: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            if name == "train_loss" or name.startswith("val_"):
                for entry in client.get_metric_history(run_id, name):
                    metrics.setdefault(entry.step, {})[name] = entry.value
    if not metrics:
        raise ConfigError(f"run {run_id} at {shown} has no epoch to compare with")
    return Logged(study, strategy, run.data.params[MODEL], int(run.data.params[SEED]), metrics)


def rerun(run_id: str, overrides: Sequence[str], tolerance: float) -> int:
    """Train anew, print both sides of each result, and return the exit code."""
    tracking_uri = next((word.partition("=")[2] for word in overrides if word.startswith("tracking.uri=")), _STORE)
    logged = read_run(tracking_uri, run_id)
    with tempfile.TemporaryDirectory() as folder:
        # Every configuration, written out, is a study file that composes to it.
        file = Path(folder) / "study.yaml"
        file.write_text(logged.study, encoding="utf-8")
        config = compose_study([f"study={file}", *overrides])

    # Only here: they take seconds to import.
    with importing():
        from search.reporting import Terminal
        from search.study import gather
        from search.trials import make_trainer, rank_group_of
        from strategies import Strategy

    with Terminal(config.metric) as terminal:
        found = gather(config, terminal)
        strategy = Strategy.from_yaml(logged.strategy)
        rank_group = rank_group_of(config, found.device)
        source = found.sources[logged.model]
        try:
            with rank_group.training(logged.model, strategy, logged.seed) as ranks:
                trainer = make_trainer(found, config.pruner, source, strategy, logged.seed, ranks=ranks)
                worst = 0.0
                terminal.say(f"{'step':>5}  {'metric':<24}  {'logged':>14}  {'now':>14}  difference")
                for result in rank_group.epochs(trainer):
                    before = logged.metrics.get(result.step)
                    if before is None:
                        # It was pruned, or went on elsewhere, after the step before.
                        break
                    for name in sorted(before.keys() & result.metrics.keys()):
                        gap = difference(before[name], result.metrics[name])
                        worst = max(worst, gap)
                        values = f"{before[name]:>14.8g}  {result.metrics[name]:>14.8g}"
                        terminal.say(f"{result.step:>5}  {name:<24}  {values}  {'none' if gap == 0 else f'{gap:.1e}'}")
        finally:
            rank_group.close()
        agrees = worst <= tolerance
        what = "exactly" if worst == 0 else f"to {worst:.1e}"
        terminal.say(
            f"The trial was reproduced {what}" if agrees else f"The trial was NOT reproduced: it is off {what}"
        )
    return 0 if agrees else FAILED


def difference(one: float, other: float) -> float:
    """How far two values lie apart, in the larger, or in 1 where both are smaller."""
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other) / max(abs(one), abs(other), 1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.rerun",
        description=(__doc__ or "").split("\n\n")[1].strip(),
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="id of a trial's run in MLflow")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the study to give anew")
    parser.add_argument(
        "--tolerance", type=float, default=_TOLERANCE, help=f"difference that is none, {_TOLERANCE:g} by default"
    )
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(lambda: rerun(options.run, options.overrides, options.tolerance), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
