"""The command ``dsmoe``: one subcommand a file in dsmoe/commands.

A command module has ``NEEDS`` (packages that it imports), ``make_parser(prog)`` and
``run(options)``, which returns the exit code. Modules are imported when they are chosen, so that
``dsmoe --help`` needs nothing but Python.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Sequence

from dsmoe.common.arguments import OneLineParser
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.guard import guarded
from dsmoe.common.typed import typed_as

#: Name -> what it does, in one sentence.
COMMANDS = {
    "apply": "Applies the patch series to a DeepSpeed checkout, or takes it back.",
    "hosts": "Writes host files for the launcher, from Ray, Slurm, a list or this machine.",
    "run": "Trains the MoE language model and records how fast it went.",
    "train": "Trains the model and keeps it: checkpoints, from which it goes on.",
    "evaluate": "Says how well a trained model predicts a text.",
    "generate": "Continues a text with a trained model.",
    "export": "Writes a trained model as safetensors, without DeepSpeed's parts.",
    "plan": "Says what a run needs of memory and network, before anything starts.",
    "check": "Checks that everything is there that a run needs, here and on other hosts.",
    "plot": "Draws the paper's figure from result rows, and prints the comparison.",
    "report": "Makes one HTML page of a results folder.",
    "bench": "Times the fast path against the reference path on this machine.",
    "calibrate": "Measures this machine's rates, from which a plan predicts time.",
    "profile": "Says where one training step spends the GPU's time.",
    "defects": "Lists the defects that the patches fix, and says which another DeepSpeed has.",
    "converge": "Trains the MoE model beside a dense one and compares held-out loss.",
}

EXAMPLES = """examples:
  dsmoe apply build/DeepSpeed --from-release     # build the pinned DeepSpeed and patch it
  dsmoe run 1                                    # train; without a GPU a small model on the CPU
  dsmoe plan 64 --suite paper                    # what the paper's largest case needs
  dsmoe COMMAND --help                           # options, examples and exit codes of a command

The scripts apply_patch.py, get_hostfiles.py and run_deepspeed_benchmark.sh are the commands apply,
hosts and run."""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one command line; its exit code. ``prog``: the script's name, if it is not dsmoe."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ and "COMP_LINE" in os.environ:
        _complete()
    if prog and arguments:
        typed_as(arguments[0], prog)
    return guarded(lambda: _run(arguments, prog), lambda: _wants_json(arguments))


def check_arguments(arguments: list[str]) -> int:
    """The exit code of a command line's mistakes, 0 without any; needs nothing but Python."""

    def parse() -> int:
        _load(arguments[0]).make_parser(f"dsmoe {arguments[0]}").parse_args(arguments[1:])
        return 0

    return guarded(parse, lambda: _wants_json(arguments))


def _wants_json(arguments: list[str]) -> bool:
    """Whether JSON is asked for, known before the options are read: a mistake is JSON as well."""
    if "--json" not in arguments:
        return False
    if arguments[0] in COMMANDS:
        return bool(_load(arguments[0]).make_parser("dsmoe").knows("--json"))
    return "--version" in arguments


def _run(arguments: list[str], prog: str | None) -> int:
    if arguments and arguments[0] in COMMANDS:
        command = _load(arguments[0])
        parser = command.make_parser(prog or f"dsmoe {arguments[0]}")
        try:
            options = parser.parse_args(arguments[1:])
        except SystemExit as ended:  # argparse printed the help
            return int(ended.code or 0)
        _check_working_folder()
        from dsmoe.common.packages.interpreter import need

        need(*command.NEEDS)
        options.typed = arguments[1:]
        return int(command.run(options))
    options, others = _top_parser().parse_known_args(arguments)
    if options.version:
        if others:
            _top_parser().error(f"--version: found {others[0]!r} beside it; expected --json alone")
        from dsmoe.commands.version import show

        return show(as_json=options.json)
    if arguments and not options.help:
        _top_parser().error(f"found {arguments[0]!r}; expected a command: {', '.join(COMMANDS)}")
    _top_parser().print_help()
    return 0 if options.help else 2


def _check_working_folder() -> None:
    """Raises EnvironmentProblem where it was removed: libraries would end, or name no file."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise EnvironmentProblem(
            "found a working directory that no longer exists; expected one: cd to another"
        ) from None


def _load(name: str) -> Any:
    return importlib.import_module(f"dsmoe.commands.{name}")


def _top_parser() -> OneLineParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {words}" for name, words in COMMANDS.items())
    parser = OneLineParser(
        prog="dsmoe",
        usage="dsmoe COMMAND ... | dsmoe --version [--json] | dsmoe --help",
        description="DeepSpeed's Mixture-of-Experts baseline of the Alpa paper, as a patch set.\n\n"
        f"commands:\n{listed}",
        epilog=EXAMPLES,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="Shows this text.")
    parser.add_argument("--version", action="store_true", help="Shows every part's version.")
    parser.add_argument("--json", action="store_true", help="With --version: prints JSON.")
    return parser


def _complete() -> None:
    """Complete a command line for the shell, by argcomplete; does not return."""
    import argcomplete

    parser = argparse.ArgumentParser(prog="dsmoe")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        made = _load(name).make_parser(f"dsmoe {name}")
        commands.add_parser(name, parents=[made], add_help=False)
    argcomplete.autocomplete(parser)
