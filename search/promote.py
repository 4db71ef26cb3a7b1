"""Make a study's winner the model that is served: ``python -m search.promote STUDY``."""

import argparse
import logging
import sys
from collections.abc import Sequence

from search.command_line import exit_code
from search.processes import importing
from strategies import ConfigError

_USAGE = """\
The winner is registered in MLflow under the study's name (champion.name) as the version with the alias challenger. It
gets the alias champion where there is none yet, or where it is better beyond chance on the study's test images, both
models asked about the same, and neither slower nor larger than champion.max_slowdown and champion.max_growth allow.
What was compared is written on the version."""


def promote(words: Sequence[str], is_back: bool) -> int:
    """Propose the winner of a study, or go back to the champion before; print what became of it.

    Raises:
        ConfigError: There is no such study, it has no winner yet, or the registry cannot be used.
        TrialError: MLflow is away.
    """
    with importing():
        from search.storage import STORE_KEYS, WINNER, config_of, open_stored, reachable
        from search.winner import describe_verdict, propose, rollback
        from trainers import choose_device

    # The others are for what is done with it.
    studies = open_stored([word for word in words if "=" not in word or word.startswith(STORE_KEYS)])
    if len(studies) != 1:
        raise ConfigError(f"one study is promoted at a time, not {', '.join(stored.name for stored in studies)}")
    (stored,) = studies
    config = config_of(stored, [word for word in words if "=" in word])
    uri = reachable(stored.tracking_uri)
    if is_back:
        verdict = rollback(config, uri)
    else:
        winner = stored.study.user_attrs.get(WINNER)
        if winner is None:
            raise ConfigError(f"study {stored.name!r} has no winner yet; a search has one when it has ended")
        device = choose_device(config.device, config.precision)
        verdict = propose(config, winner["model_uri"], None, uri, device)
    print(describe_verdict(verdict))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m search.promote",
        description="Make a study's winner the model that is served, if it is better than the present one.",
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="STUDY or key=value", help="the study, and keys given anew")
    parser.add_argument(
        "--rollback", action="store_true", help="make the version champion that the present one replaced"
    )
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return exit_code(lambda: promote(options.words, options.rollback), "the champion is as it was")


if __name__ == "__main__":
    sys.exit(main())
