"""Expected failures of the applier, and the table of its exit codes.

The table here is the one that ``apply_patch.py --help`` prints and docs/applying.md lists.
"""

from __future__ import annotations

from typing import Sequence

from dsmoe.errors import DsmoeError, EnvironmentProblem, UsageError

__all__ = [
    "EXIT_CODES",
    "ArchiveProblem",
    "Busy",
    "EnvironmentProblem",
    "ExportRefused",
    "LocalChanges",
    "NotACheckout",
    "NotApplied",
    "OtherBase",
    "PatchsetError",
    "ResultMismatch",
    "SeriesBroken",
    "UsageError",
]


class PatchsetError(DsmoeError):
    """Base class; ``details`` are further lines, one a finding, shown below the message."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details: list[str] = list(details)


class NotACheckout(PatchsetError):
    """The path is no work tree of a git repository (or not its top folder)."""

    exit_code = 3


class OtherBase(PatchsetError):
    """A git checkout, but HEAD is no base that this project knows."""

    exit_code = 4


class SeriesBroken(PatchsetError):
    """Patches or overlay files that do not fit the base; every one is in ``details``."""

    exit_code = 5


class ResultMismatch(PatchsetError):
    """The built result, or the series' digest, is not the one locked beside the base."""

    exit_code = 6


class LocalChanges(PatchsetError):
    """Files with local changes, or untracked files, stand where the applier must write."""

    exit_code = 7


class Busy(PatchsetError):
    """Another applier, or another git command, is at work in the checkout."""

    exit_code = 9


class ArchiveProblem(PatchsetError):
    """The release archive cannot be had, is another file, or is unsafe to unpack."""

    exit_code = 10


class ExportRefused(PatchsetError):
    """The edits in the checkout cannot be turned into a series as asked."""

    exit_code = 11


class NotApplied(PatchsetError):
    """The command needs an applied series, and the checkout is in another state."""

    exit_code = 12


EXIT_CODES = (
    (0, "done, or nothing to do; with --status: applied"),
    (1, "a failure of git that none of the codes below names"),
    (2, "unusable option or argument"),
    (3, "PATH is not a git checkout (or not its top folder)"),
    (4, "a checkout of another commit than the base"),
    (5, "patches or overlay files do not fit the base (each is listed)"),
    (6, "the result is not the one locked in bases/NAME/result.json"),
    (7, "local changes or untracked files in the way (each is listed)"),
    (8, "git, a Python package, a right or disk space is missing"),
    (9, "another applier or another git command is at work there"),
    (10, "the release archive cannot be had or is not the pinned one"),
    (11, "the edits cannot be exported as asked"),
    (12, "the command needs an applied series"),
    (20, "--status: pristine"),
    (21, "--status: applied, then edited"),
    (22, "--status: the base, edited, not applied"),
    (23, "--status: partly applied"),
    (24, "--status: applied with another series"),
    (130, "interrupted from the keyboard"),
)
