"""A logged model for other programs: ``python -m search.export STUDY --out model.onnx``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import HelpFormatter, check_output, exit_code, read_words, say, set_up_logging
from search.config import spelled
from search.winner import check_destination, export_model, find_model, push
from strategies import ConfigError

_USAGE = """\
MODEL is a study, whose champion is meant, else its winner; or what a search prints (models:/m-...), or another version
(models:/NAME/3). A study is named as for search.run, or by its name in the store; store.url=... and tracking.uri=...
say where that is.
The ending of --out says what is written:
  .onnx     for ONNX Runtime and others (pip install -e '.[onnx]')
  .pt2      a torch.export program, which torch alone can run
  a folder  a timm model: timm.create_model('local-dir:FOLDER') loads it, and --push uploads it to the Hugging Face hub

A file takes any number of images (N, C, S, S) as floats between 0 and 1, and gives probabilities, numbers, or a score
for each class and pixel. A JSON file beside it says what its inputs and outputs mean. Before a file or folder is kept,
it is run and its answers are compared with the model's."""


def export(model: str, keys: Sequence[str], out: Path, uri: str | None, repository: str | None) -> int:
    """Write a logged model for other programs, upload it if that is asked for, and print both.

    Raises:
        ConfigError: There is no such model, it cannot be written in this form, or the hub cannot be reached.
        TrialError: What was written gives other answers than the model.
    """
    check_destination(out)
    if out.suffix:
        check_output("--out", out)
    if repository is not None and out.suffix:
        raise ConfigError("--push: the hub takes a timm folder; let --out name one")
    address, store = find_model(model, keys, uri)
    off = export_model(address, out, store)
    say(f"{out} gives the model's answers{', exactly' if off == 0 else f', to {off:.1e}'}")
    if repository is not None:
        say(push(out, repository))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=spelled("export"),
        description="Write a logged model for other programs.",
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a study, or a model's address in MLflow")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="where the study's stores are")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="file.onnx, file.pt2, or a folder")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow's store, as tracking.uri=URI")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(
        lambda: export(options.model, options.keys, options.out, options.tracking_uri, options.push), "nothing is kept"
    )


if __name__ == "__main__":
    sys.exit(main())
