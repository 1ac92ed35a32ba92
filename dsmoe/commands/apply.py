"""The command line of apply_patch.py: arguments to functions, outcomes to lines or JSON."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from pathlib import Path
from typing import Any, Sequence

from dsmoe.common.arguments import OneLineParser
from dsmoe.common.errors import EXIT_CODES, DsmoeError, EnvironmentProblem, UsageError
from dsmoe.common.output import needs_no_reader
from dsmoe.common.places import DEFAULT_BASE
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.checkout import actions
from dsmoe.patchset.checkout import situation as names
from dsmoe.patchset.checkout import state as states

_EXAMPLES = """examples:
  python apply_patch.py ~/efs/DeepSpeed                    apply to a clone at bd3ebd
  python apply_patch.py build/DeepSpeed --from-release     build the checkout, then apply
  python apply_patch.py ~/efs/DeepSpeed --status           name the state, change nothing
  python apply_patch.py ~/efs/DeepSpeed --check            try every patch, change nothing
  python apply_patch.py ~/efs/DeepSpeed --revert           back to the base
  python apply_patch.py --installed                        the deepspeed that pip installed
  python apply_patch.py ~/efs/DeepSpeed --export           edits in the checkout -> patch/, overlay/
  python apply_patch.py ~/efs/DeepSpeed --export --to NAME.patch
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; its epilog lists examples and every exit code."""
    codes = "\n".join(f"  {code:<4} {text}" for code, text in EXIT_CODES.items())
    parser = OneLineParser(
        prog="apply_patch.py",
        description="Apply this project's patch series to one pinned DeepSpeed checkout.",
        epilog=f"{_EXAMPLES}\nexit codes:\n{codes}\n\nThe manual is docs/applying.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", metavar="PATH", type=Path, nargs="?", help="top folder of the checkout"
    )
    parser.add_argument(
        "--installed",
        action="store_true",
        help="instead of PATH: the deepspeed package of this Python environment",
    )
    action = parser.add_mutually_exclusive_group()
    for name, text in (
        ("--check", "report every patch that does not fit; change nothing"),
        ("--status", "name the state of the checkout; change nothing"),
        ("--revert", "bring the checkout back to the base"),
        ("--export", "write the checkout's edits into patch/, overlay/ and result.json"),
        ("--lock", "write result.json after patch/ or overlay/ was edited by hand"),
        ("--from-release", "build the checkout from the release archive first, then apply"),
    ):
        action.add_argument(name, action="store_true", help=text)
    action.add_argument(
        "--port-from",
        metavar="CHECKOUT",
        type=Path,
        help="rewrite the series of PATH's base from that of CHECKOUT's base",
    )
    parser.add_argument("--no-apply", action="store_true", help="with --from-release: build only")
    parser.add_argument("--archive", metavar="FILE", type=Path, help="a local release archive")
    parser.add_argument(
        "--to", metavar="NAME", help="with --export: the patch that takes the edits"
    )
    parser.add_argument("--base", metavar="NAME", help="the base (default: recognised by HEAD)")
    parser.add_argument("--bases", metavar="DIR", type=Path, help="the folder of bases")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


@needs_no_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code of the table in errors.py."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:  # a file name need not fit the terminal
            reconfigure(errors="backslashreplace")
    try:
        report = _run(make_parser().parse_args(arguments))
    except DsmoeError as error:
        return _failed(error, as_json)
    except KeyboardInterrupt:
        return _failed(_Stopped("stopped from the keyboard; repeat the command to finish"), as_json)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        text = f"{error.filename}: {error.strerror}; free disk space or change the rights"
        return _failed(EnvironmentProblem(text), as_json)
    if as_json:
        print(json.dumps(report, indent=2, sort_keys=True))
    return int(report["exit_code"])


class _Stopped(DsmoeError):
    exit_code = 130


def _failed(error: DsmoeError, as_json: bool) -> int:
    details: list[str] = getattr(error, "details", [])
    if as_json:
        report = {
            "outcome": "failed",
            "error": type(error).__name__.lstrip("_"),
            "message": str(error),
            "details": details,
            "exit_code": error.exit_code,
        }
        print(json.dumps(report, indent=2, sort_keys=True))
    else:
        print(f"apply_patch.py: {error}", file=sys.stderr)
        for line in details:
            print(f"  {line}", file=sys.stderr)
    return error.exit_code


def _run(options: argparse.Namespace) -> dict[str, Any]:
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


def _installed(options: argparse.Namespace, bases: list[Base], say: Any) -> dict[str, Any]:
    from dsmoe.patchset.sources import installed

    others = ("export", "lock", "from_release", "port_from")
    if options.path is not None or any(getattr(options, name) for name in others):
        raise UsageError("--installed takes no PATH, and only --status, --check and --revert")
    if options.status:
        return _show_state(installed.describe(bases), say)
    if options.revert:
        return _report(installed.revert(bases, say), say)
    return _report(installed.apply(bases, say, dry=options.check), say)


def _from_release(options: argparse.Namespace, bases: list[Base], say: Any) -> dict[str, Any]:
    from dsmoe.patchset.sources.release import build_checkout

    base = bases[0]
    new = build_checkout(options.path, base, options.archive, say)
    if not options.no_apply:
        return _report(actions.apply(options.path, [base], say), say)
    state = states.describe(options.path, [base])
    message = "built" if new else "already built"
    return _report(actions.ActionResult(message.replace(" ", "-"), message, state), say)


def _report(outcome: actions.ActionResult, say: Any) -> dict[str, Any]:
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


_STATE_WORDS = {
    names.PRISTINE: "pristine: the base, nothing applied",
    names.APPLIED: "applied",
    names.APPLIED_EDITED: "applied, then edited",
    names.BASE_EDITED: "the base, edited, nothing applied",
    names.PARTLY: "partly applied: repeat the command to finish, or use --revert",
    names.OTHER_SERIES: "applied with another series; apply again to renew it",
}


def _status(path: Path, bases: list[Base], say: Any) -> dict[str, Any]:
    return _show_state(states.describe(path, bases), say)


def _show_findings(state: states.State, say: Any) -> None:
    for cause in state.causes:
        say(f"  {cause}")
    for folder in state.pending:
        say(f"  an export was stopped half-way: {folder}/.export; the next command that writes")
        say("  (apply, --revert, --lock, --export) completes it")
    for name in state.edited:
        say(f"  edited: {name}")


def _show_state(state: states.State, say: Any) -> dict[str, Any]:
    code = states.EXIT_CODES[state.name]
    if state.message:
        say(f"{state.name}: {state.message}")
    else:
        say(f"{state.path}: base {state.base} ({state.label}), HEAD {state.head}")
        say(_STATE_WORDS[state.name])
    _show_findings(state, say)
    return {"outcome": state.name, "state": state.as_json(), "exit_code": code}
