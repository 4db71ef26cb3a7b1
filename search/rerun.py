"""Train a logged trial once more and compare: ``python -m search.rerun RUN_ID [key=value ...]``.

A trial is reproduced from its MLflow run alone: the study's configuration, the strategy, the seed. The stores are only
read.
"""

import argparse
import sys
from collections.abc import Sequence

from search.command_line import FAILED, HelpFormatter, exit_code, read_words, set_up_logging
from search.config import compose_study, spelled, tracking_uri
from search.processes import importing, temporary_folder
from strategies import ConfigError

_USAGE = """\
RUN is the id of a trial's run, as MLflow or search.compare shows it. For a trial that ended while MLflow was away,
search.compare shows the run's tag unfreeze.spool_key, which can be given too. Keys of the study may be given anew, in
the grammar of search.run: where the stores and the images are now (tracking.uri, data.root), device, threads.

The exit code is 0 where all epochs agree, 1 where they do not, 2 after bad input. On the machine of the trial, with as
many threads, they agree to the last digit: on a CPU always, on a GPU if the study had deterministic: true. Elsewhere
they agree to rounding, which grows in a long training."""

# Differences that another machine's rounding can cause in a short training; on the same CPU nothing differs.
_TOLERANCE = 1e-4
_STORE = "sqlite:///mlruns/mlflow.db"


def rerun(run_id: str, overrides: Sequence[str], tolerance: float) -> int:
    """Train a logged trial again, print both sides of each result, and return the exit code.

    Raises:
        UnfreezeError: The run, the data or the weights cannot be used.
    """
    if not tolerance >= 0:
        raise ConfigError(f"--tolerance: {tolerance} is not at least 0")
    # Only here: they take seconds to import.
    with importing():
        from search.reporting import Terminal
        from search.study import read_trial, reproduce

    uri = next((word.partition("=")[2] for word in overrides if word.startswith("tracking.uri=")), _STORE)
    logged = read_trial(tracking_uri(uri), run_id)
    with temporary_folder() as folder:
        # Every configuration, written out, is a study file that composes to it.
        file = folder / "study.yaml"
        file.write_text(logged.study, encoding="utf-8")
        config = compose_study([f"study={file}", *overrides])
    with Terminal(config.metric) as terminal:
        worst = reproduce(config, logged, terminal)
        agrees = worst <= tolerance
        if not agrees and not config.deterministic and config.device != "cpu":
            terminal.say("On a GPU, only trials of a study with deterministic: true are reproduced to the last digit")
        how = "exactly" if worst == 0 else f"to {worst:.1e}"
        terminal.say(
            f"The trial was reproduced {how}" if agrees else f"The trial was NOT reproduced: it is off by {worst:.1e}"
        )
    return 0 if agrees else FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("rerun"),
        description=(__doc__ or "").split("\n\n")[1].strip(),
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", help="id of a trial's run in MLflow")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the study to give anew")
    parser.add_argument(
        "--tolerance", type=float, default=_TOLERANCE, help=f"difference that is none, {_TOLERANCE:g} by default"
    )
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: rerun(options.run, options.overrides, options.tolerance), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
