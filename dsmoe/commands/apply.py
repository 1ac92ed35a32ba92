"""``dsmoe apply``: the patch series on one checkout, or on the installed package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from dsmoe.common.arguments import OneLineParser, add_json, file_name
from dsmoe.common.errors import UsageError, exit_code_lines
from dsmoe.common.places import DEFAULT_BASE

if TYPE_CHECKING:  # importing these needs GitPython, which --help does not
    from dsmoe.patchset.base import Base
    from dsmoe.patchset.checkout.actions import ActionResult
    from dsmoe.patchset.checkout.state import State

NEEDS = ("git",)

EXAMPLES = """examples:
  dsmoe apply ~/efs/DeepSpeed                    # apply to a clone at bd3ebd
  dsmoe apply build/DeepSpeed --from-release     # build the checkout, then apply
  dsmoe apply ~/efs/DeepSpeed --status           # name the state, change nothing
  dsmoe apply ~/efs/DeepSpeed --check            # try every patch, change nothing
  dsmoe apply ~/efs/DeepSpeed --revert           # back to the base
  dsmoe apply --installed                        # the deepspeed that pip installed
  dsmoe apply ~/efs/DeepSpeed --export           # edits in the checkout -> patch/, overlay/
  dsmoe apply ~/efs/DeepSpeed --export --to NAME.patch

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command; the help lists examples and every exit code."""
    parser = OneLineParser(
        prog=prog,
        description="Applies this project's patch series to one pinned DeepSpeed checkout.",
        epilog=EXAMPLES.replace("dsmoe apply", prog) + exit_code_lines("apply"),
    )
    parser.add_argument(
        "path", metavar="PATH", type=file_name, nargs="?", help="The checkout's top folder is here."
    )
    parser.add_argument(
        "--installed",
        action="store_true",
        help="The deepspeed package of this Python environment is taken instead of PATH.",
    )
    add_json(parser)
    group = parser.add_argument_group("what is done (default: the series is applied)")
    action = group.add_mutually_exclusive_group()
    for name, text in (
        ("--check", "Every patch that does not fit is reported; nothing is changed."),
        ("--status", "The state of the checkout is named; nothing is changed."),
        ("--revert", "The checkout goes back to the base."),
        ("--from-release", "The checkout is built from the release archive first."),
    ):
        action.add_argument(name, action="store_true", help=text)
    group.add_argument(
        "--no-apply", action="store_true", help="With --from-release: the checkout is only built."
    )
    group.add_argument(
        "--archive",
        metavar="FILE",
        type=file_name,
        help="With --from-release: the archive is here.",
    )
    series = parser.add_argument_group("changing the series")
    change = action
    for name, text in (
        ("--export", "The checkout's edits go to patch/, overlay/ and result.json."),
        ("--lock", "result.json is written after patch/ or overlay/ was edited by hand."),
    ):
        change.add_argument(name, action="store_true", help=text)
    change.add_argument(
        "--port-from",
        metavar="CHECKOUT",
        type=file_name,
        help="The series of PATH's base is written anew from that of CHECKOUT's base.",
    )
    series.add_argument("--to", metavar="NAME", help="With --export: this patch takes the edits.")
    bases = parser.add_argument_group("bases")
    bases.add_argument(
        "--base", metavar="NAME", help="The checkout is of this base (default: HEAD tells)."
    )
    bases.add_argument(
        "--bases", metavar="DIR", type=file_name, help="The bases are in this folder."
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Carry the command out and print its report. Raises DsmoeError."""
    report = _run(options)
    if options.json:
        print(json.dumps(report, indent=2, sort_keys=True))
    return int(report["exit_code"])


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from dsmoe.patchset.base import load_bases
    from dsmoe.patchset.checkout import actions

    def say(text: str) -> None:
        if not options.json:
            print(text, flush=True)

    if options.to and not options.export:
        raise UsageError("--to belongs to --export")
    if (options.no_apply or options.archive) and not options.from_release:
        raise UsageError("--no-apply and --archive belong to --from-release")
    bases = load_bases(options.bases, options.base)
    bases.sort(key=lambda base: base.name != DEFAULT_BASE)
    if options.installed:
        return _installed(options, bases, say)
    if options.path is None:
        raise UsageError("no PATH; name the checkout's top folder, or use --installed")
    if options.status:
        return _status(options.path, bases, say)
    if options.from_release:
        return _from_release(options, bases, say)
    if options.export:
        from dsmoe.patchset.authoring.export import export

        return _report(export(options.path, bases, options.to, say), say)
    if options.port_from:
        from dsmoe.patchset.authoring.rebase import port

        return _report(port(options.port_from, options.path, bases, say), say)
    action = actions.apply
    if options.check:
        action = actions.check
    elif options.revert:
        action = actions.revert
    elif options.lock:
        action = actions.lock
    return _report(action(options.path, bases, say), say)


Say = Callable[[str], None]


def _installed(options: argparse.Namespace, bases: list[Base], say: Say) -> dict[str, Any]:
    from dsmoe.patchset.sources import installed

    others = ("export", "lock", "from_release", "port_from")
    if options.path is not None or any(getattr(options, name) for name in others):
        raise UsageError("--installed takes no PATH, and only --status, --check and --revert")
    if options.status:
        return _show_state(installed.describe(bases), say)
    if options.revert:
        return _report(installed.revert(bases, say), say)
    return _report(installed.apply(bases, say, dry=options.check), say)


def _from_release(options: argparse.Namespace, bases: list[Base], say: Say) -> dict[str, Any]:
    from dsmoe.patchset.checkout import actions, state
    from dsmoe.patchset.sources.archive import check_archive
    from dsmoe.patchset.sources.release import build_checkout

    base = bases[0]
    if options.archive and base.release:  # also where it is not needed any more: a slip is told now
        check_archive(base, options.archive)
    new = build_checkout(options.path, base, options.archive, say)
    if not options.no_apply:
        return _report(actions.apply(options.path, [base], say), say)
    found = state.describe(options.path, [base])
    message = "built" if new else "already built"
    return _report(actions.ActionResult(message.replace(" ", "-"), message, found), say)


def _report(outcome: ActionResult, say: Say) -> dict[str, Any]:
    say(outcome.message)
    _show_findings(outcome.state, say)
    return {
        "outcome": outcome.name,
        "message": outcome.message,
        "changed": outcome.changed,
        "trees": outcome.trees,
        "state": outcome.state.as_json(),
        "exit_code": 0,
    }


def _status(path: Path, bases: list[Base], say: Say) -> dict[str, Any]:
    from dsmoe.patchset.checkout.state import describe

    return _show_state(describe(path, bases), say)


def _show_findings(state: State, say: Say) -> None:
    for cause in state.causes:
        say(f"  {cause}")
    for folder in state.pending:
        say(f"  an export was stopped half-way: {folder}/.export; the next command that writes")
        say("  (apply, --revert, --lock, --export) completes it")
    for name in state.edited:
        say(f"  edited: {name}")


def _show_state(state: State, say: Say) -> dict[str, Any]:
    from dsmoe.patchset.checkout.state import EXIT_CODES, WORDS

    if state.message:
        say(f"{state.name}: {state.message}")
    else:
        say(f"{state.path}: base {state.base} ({state.label}), HEAD {state.head}")
        say(WORDS[state.name])
    _show_findings(state, say)
    return {"outcome": state.name, "state": state.as_json(), "exit_code": EXIT_CODES[state.name]}
