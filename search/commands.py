"""The command ``unfreeze``: its first word names the command that takes the others.

``unfreeze report pets`` does the same as ``python -m search.report pets``. A command is imported when it is called, so
that help and a mistyped name wait for nothing.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from search.command_line import BAD_INPUT, exit_code, is_asked_by_shell, read_words, say
from search.config import SCRIPT
from strategies import ConfigError, nearest

#: By its name, the line about each command in the order of the help.
COMMANDS = {
    "run": "search for the best way to fine-tune a model on your images",
    "report": "write one page about a study: the answer, what mattered, the worst mistakes",
    "compare": "show the trials of one study or several side by side",
    "ui": "serve MLflow's pages of a study, and Optuna's",
    "predict": "run a study's model on images",
    "export": "write a model as ONNX, torch.export or a timm folder",
    "promote": "make a study's winner the model that is served, if it is better",
    "nightly": "search every night, and promote winners that are better",
    "rerun": "train a logged trial once more and compare",
    "housekeeping": "remove old checkpoints and caches",
    "store": "serve one database to many workers",
    "learn": "fit the learnt policy anew to your own fine-tunings",
    "models": "list models, and show the blocks of a model",
    "doctor": "check what of this machine and this installation works",
    "completion": "print what makes bash, zsh or fish complete these commands",
}

_SHELLS = ("bash", "zsh", "fish")

_HOW_TO_COMPLETE = f"""\
bash, in ~/.bashrc:                   eval "$({SCRIPT} completion bash)"
zsh, in ~/.zshrc after compinit:      eval "$({SCRIPT} completion zsh)"
fish, in ~/.config/fish/config.fish:  {SCRIPT} completion fish | source

Commands, options, keys, studies, files and the values that a key accepts are completed."""


def help_text() -> str:
    """Usage, and a line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {SCRIPT} COMMAND [words and options of the command]",
            "",
            "Search for the best way to fine-tune a pretrained vision model on your images.",
            "",
            *lines,
            "",
            f"'{SCRIPT} COMMAND --help' explains a command. '{SCRIPT} run study=resnet_cls' is a first search.",
        ]
    )


def show_help() -> int:
    """Print the commands."""
    say(help_text())
    return 0


def completion(words: Sequence[str]) -> int:
    """Print the code that makes a shell complete ``unfreeze``."""
    parser = argparse.ArgumentParser(
        prog=f"{SCRIPT} completion",
        description="Print what makes a shell complete these commands.",
        epilog=_HOW_TO_COMPLETE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=_SHELLS)
    options = read_words(parser, words)
    from argcomplete.shell_integration import shellcode

    say(shellcode([SCRIPT], shell=options.shell))
    return 0


def _run(name: str, words: Sequence[str]) -> int:
    if name == "completion":
        return completion(words)
    return int(import_module(f"search.{name}").main(words))


def _refuse(word: str, words: Sequence[str]) -> int:
    """Say what was meant by a first word that is no command."""
    if "=" in word and not word.startswith("-"):
        hint = f"did you mean '{SCRIPT} run {' '.join(words)}'?"
    else:
        hint = nearest(word, COMMANDS)

    def refuse() -> int:
        raise ConfigError(f"{word[:100]!r} is no command of {SCRIPT}; {hint[:1000]}")

    return exit_code(refuse)


def _answer_shell() -> int:
    """Print what could be typed next; argcomplete ends the process then."""
    typed = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    before = typed.split()[1:] if typed[-1:].isspace() else typed.split()[1:-1]
    if before and before[0] in COMMANDS:
        # The command's own parser answers: for argcomplete, the program is the second word.
        os.environ["_ARGCOMPLETE"] = "2"
        return _run(before[0], [])
    parser = argparse.ArgumentParser(prog=SCRIPT)
    commands = parser.add_subparsers()
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=line)
    read_words(parser, [])
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, and return its exit code."""
    if is_asked_by_shell():
        return _answer_shell()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        say(help_text(), sys.stderr)
        return BAD_INPUT
    if words[0] in ("-h", "--help", "help"):
        return exit_code(show_help)
    if words[0] not in COMMANDS:
        return _refuse(words[0], words)
    return _run(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(main())
