"""Every expected failure, one class each, and the one table of exit codes.

An expected failure is a :class:`DsmoeError`: one line that says what was found, what was expected
and what to do, and an exit code that means the same in every command. Anything else that reaches
the command line is a bug of this project. ``docs/reference/exit-codes.md`` lists the table.
"""

from __future__ import annotations

from typing import Sequence


class DsmoeError(Exception):
    """An expected failure: ``str(error)`` is the whole message that a user needs.

    ``details`` are further lines, one a finding, shown below the message. ``exit_code`` is what
    the command returns to the shell.
    """

    exit_code = 1

    def __init__(self, message: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details: list[str] = list(details)


class UsageError(DsmoeError):
    """An option or an argument has a value that cannot be used."""

    exit_code = 2


class NotACheckout(DsmoeError):
    """The path is no work tree of a git repository, or not its top folder."""

    exit_code = 3


class OtherBase(DsmoeError):
    """A git checkout, but HEAD is no base that this project knows."""

    exit_code = 4


class SeriesBroken(DsmoeError):
    """Patches or overlay files that do not fit the base; every one is in ``details``."""

    exit_code = 5


class ResultMismatch(DsmoeError):
    """The built result, or the series' digest, is not the one locked beside the base."""

    exit_code = 6


class LocalChanges(DsmoeError):
    """Files with local changes, or untracked files, stand where the patches must write."""

    exit_code = 7


class EnvironmentProblem(DsmoeError):
    """A tool, a package, a right, a port or disk space that the command needs is missing."""

    exit_code = 8


class DataError(DsmoeError):
    """Text, a tokenizer or a token pair is missing, broken or does not fit the model."""

    exit_code = 9


class ResultsError(DsmoeError):
    """A result file cannot be read or written, or a record is not valid."""

    exit_code = 10


class ExportRefused(DsmoeError):
    """The edits in the checkout cannot be turned into a series as asked."""

    exit_code = 11


class NotApplied(DsmoeError):
    """The command needs an applied series, and the checkout is in another state."""

    exit_code = 12


class GitFailed(DsmoeError):
    """A git command failed for a reason that no other class names."""

    exit_code = 13


class Busy(DsmoeError):
    """Another process of this project, or another git command, is at work in the checkout, or in
    the folder that a training is kept in."""

    exit_code = 14


class ArchiveProblem(DsmoeError):
    """The release archive cannot be had, is another file, or is unsafe to unpack."""

    exit_code = 15


class HostProblem(DsmoeError):
    """A list of hosts cannot be used: malformed, a host twice, no or unequal slot counts."""

    exit_code = 16


class SourceProblem(DsmoeError):
    """The source of hosts (Ray, Slurm) is missing, does not answer, or has no GPU to give."""

    exit_code = 17


class HostGone(DsmoeError):
    """A listed host died before the files were written, or does not answer the probe."""

    exit_code = 18


class TrainingFailed(DsmoeError):
    """A training process cannot go on; the message is the reason that the run's row keeps."""

    exit_code = 25


#: Code -> meaning, the same in every command.
EXIT_CODES: dict[int, str] = {
    0: "done, or there was nothing to do",
    1: "the answer is no: a run failed (its row has -1 and why), a plan does not fit, bench is "
    "below --at-least, or a proof could not run",
    2: "an option or an argument cannot be used",
    3: "the path is not a git checkout, or not its top folder",
    4: "the checkout is at another commit than the base",
    5: "patches or overlay files do not fit the base; each is listed",
    6: "the result is not the one locked in bases/NAME/result.json",
    7: "local changes or untracked files are in the way; each is listed",
    8: "a tool, a package, a right, a port or disk space is missing; dsmoe check: a check failed",
    9: "the text or the tokenizer cannot be used",
    10: "results cannot be read or written, also for want of disk space",
    11: "the edits in the checkout cannot be exported as asked",
    12: "the command needs an applied series",
    13: "git failed for a reason that no other code names",
    14: "another process is at work in the checkout, or in the folder of --save",
    15: "the release archive cannot be had, or is not the pinned one",
    16: "a list of hosts or a host file cannot be used",
    17: "the source of hosts (Ray, Slurm) is missing, does not answer, or has no GPU",
    18: "a host died meanwhile, or does not answer --probe",
    20: "--status: pristine",
    21: "--status: applied, then edited",
    22: "--status: the base, edited, nothing applied",
    23: "--status: partly applied",
    24: "--status: applied with another series",
    25: "a training process ended with a reason of its own (dsmoe run turns it into 1 and a row)",
    129: "ended by SIGHUP; every process is ended, and a run that had started has its row",
    130: "ended by Ctrl-C (SIGINT)",
    143: "ended by SIGTERM",
}


#: What every command can end with, whatever it is asked for.
ALWAYS = (0, 2, 8, 130, 143)
#: What a command can end with that builds or patches the DeepSpeed checkout that it imports.
CHECKOUT = (3, 4, 5, 6, 7, 13, 14, 15)
#: Command -> the codes that it can end with beside :data:`ALWAYS`.
OF_COMMANDS: dict[str, tuple[int, ...]] = {
    "apply": (*CHECKOUT, 11, 12, 20, 21, 22, 23, 24),
    "hosts": (16, 17, 18),
    "run": (1, *CHECKOUT, 9, 10, 16, 17, 129),
    "train": (*CHECKOUT, 9, 10, 16, 17, 25, 129),
    "evaluate": (*CHECKOUT, 9, 10),
    "generate": (*CHECKOUT, 9, 10),
    "export": (*CHECKOUT, 10),
    "plan": (1, *CHECKOUT, 16, 17),
    "check": (16, 17),
    "plot": (10,),
    "report": (10,),
    "bench": (1, *CHECKOUT, 9, 10, 25, 129),
    "calibrate": (*CHECKOUT, 10, 129),
    "profile": (*CHECKOUT, 9, 10, 25),
    "defects": (1, 5, 10),
    "converge": (1, *CHECKOUT, 9, 10, 129),
}


def exit_code_lines(command: str) -> str:
    """The lines of a command's help that say what its exit codes mean."""
    codes = sorted({*ALWAYS, *OF_COMMANDS[command]})
    return "exit codes:\n" + "\n".join(f"  {code:<4} {EXIT_CODES[code]}" for code in codes)
