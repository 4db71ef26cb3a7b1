"""Promote a study's winner to champion, the model that is served: ``python -m search.promote STUDY``."""

import argparse
import sys
from collections.abc import Sequence

from search.command_line import HelpFormatter, exit_code, read_words, say, set_up_logging
from search.config import spelled
from search.processes import importing
from strategies import ConfigError

_USAGE = """\
The winner is registered in MLflow under the study's name (champion.name) as the version with the alias challenger. It
gets the alias champion where there is none yet, or where it is better beyond chance on the same test images of the
study, and neither slower nor larger than champion.max_slowdown and champion.max_growth allow. The comparison is written
to the version's tags and description."""


def promote(words: Sequence[str], is_back: bool) -> int:
    """Propose the winner of a study as champion, or roll back to the champion before; print the verdict.

    Raises:
        ConfigError: There is no such study, it has no winner yet, or the registry cannot be used.
        TrialError: MLflow cannot be reached.
    """
    with importing():
        from search.storage import STORE_KEYS, WINNER, config_of, open_stored, reachable
        from search.winner import describe_verdict, propose, rollback
        from trainers import choose_device

    # Other keys change the study's configuration, not where the study is.
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
            raise ConfigError(f"study {stored.name!r} has no winner yet; a search has a winner when it has ended")
        device = choose_device(config.device, config.precision, config.deterministic)
        verdict = propose(config, winner["model_uri"], None, uri, device)
    say(describe_verdict(verdict))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("promote"),
        description="Make a study's winner the model that is served, if it is better than the present one.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="STUDY or key=value", help="the study, and keys to change")
    parser.add_argument(
        "--rollback", action="store_true", help="make the version champion that the present champion replaced"
    )
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: promote(options.words, options.rollback), "the champion is as it was")


if __name__ == "__main__":
    sys.exit(main())
