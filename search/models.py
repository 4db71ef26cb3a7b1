"""The blocks of a model, or the models of a zoo: ``python -m search.models NAME``."""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch

from search.command_line import HelpFormatter, exit_code, read_words, say, set_up_logging, whole_number
from search.config import spelled
from search.processes import importing
from strategies import ConfigError

_USAGE = """\
A model is named as in model.name: resnet18, torchvision:resnet50, transformers:vit, module:/path/file.py:build. Blocks
are numbered from the head, so that strategy.depth=3 trains the blocks 1 to 3 and the head."""


def show_blocks(name: str, image_size: int | None, in_chans: int) -> int:
    """Print the blocks of a model.

    Args:
        name: The model.
        image_size: Height and width of an image in pixels; None for the model's usual size.
        in_chans: Channels of the images.

    Raises:
        ConfigError: There is no such model, or it takes no such images.
    """
    with importing():
        from search.reporting import SafeConsole, print_table, widened
        from trainers import ModelSource, Weights, check_model_name, facts_of_blocks, trained_size

    check_model_name(name)
    none = Weights("none", "random", None)
    size = image_size or trained_size(name, none)
    rows = facts_of_blocks(ModelSource(name, none, 1000, size, in_chans))[::-1]
    arithmetic = sum(row.multiply_adds for row in rows)
    columns = {
        "block": ["head", *map(str, range(1, len(rows)))],
        "name": [row.name for row in rows],
        "parameters": [f"{row.parameters:,}" for row in rows],
        "arithmetic": [f"{row.multiply_adds / arithmetic if arithmetic else 0.0:.1%}" for row in rows],
    }
    title = f"{name}: {len(rows) - 1} blocks and the head, at {size} px"
    print_table(widened(SafeConsole(highlight=False)), title, columns, verbatim=True)
    say("strategy.depth=3 trains the head and the blocks 1 to 3; depth=1.0 trains all")
    return 0


def show_zoo(prefix: str, wanted: str) -> int:
    """Print the names of a zoo's models, with their parameters and their accuracy where the zoo says them.

    Args:
        prefix: The zoo.
        wanted: Part of the names, or a pattern with ``*``.

    Raises:
        ConfigError: There is no such zoo, or none of its models has such a name.
    """
    with importing():
        from trainers import zoo_named

    listed = zoo_named(prefix).listed()
    found = [one for one in listed if fnmatch(one.name, wanted if "*" in wanted else f"*{wanted}*")]
    if not listed:
        say("module: takes any function of yours: module:/path/file.py:build, see docs/models.md")
        return 0
    if not found:
        raise ConfigError(f"--filter: no model of {prefix} has {wanted!r} in its name")
    width = max(len(one.name) for one in found)
    say(f"{'name':<{width}}  parameters  ImageNet top-1")
    for one in found:
        parameters = "" if one.parameters is None else f"{one.parameters / 1e6:,.1f} M"
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.1%}"
        say(f"{one.name:<{width}}  {parameters:>10}  {accuracy:>14}".rstrip())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("models"),
        description="Show the blocks of a model, or the models of a zoo.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the model whose blocks are shown")
    parser.add_argument("--size", type=whole_number(1, 4096), metavar="PX", help="the model's usual size by default")
    parser.add_argument("--channels", type=whole_number(1, 1024), default=3, metavar="N", help="of the images; 3")
    parser.add_argument("--zoo", metavar="ZOO", help="list the models of timm, torchvision or transformers")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only names with this in them; * for any text")
    options = read_words(parser, arguments)
    if (options.name is None) == (options.zoo is None):
        parser.error("name a model, or a zoo by --zoo")
    set_up_logging()
    if options.zoo is not None:
        return exit_code(lambda: show_zoo(options.zoo, options.filter), "nothing was written")
    return exit_code(lambda: show_blocks(options.name, options.size, options.channels), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
