"""Expected failures, apart from bugs.

Every expected failure is a :class:`DsmoeError`: one line that says what was found, what was
expected and what to do, with a documented exit code. Anything else that reaches a front door is
a bug of this project and shows its traceback. The exit codes are listed in docs/exit-codes.md.
"""

from __future__ import annotations


class DsmoeError(Exception):
    """An expected failure: ``str(error)`` is the whole message a user needs.

    ``exit_code`` is what the command that meets it returns to the shell.
    """

    exit_code = 1


class UsageError(DsmoeError):
    """An option or an argument has a value that cannot be used."""

    exit_code = 2


class EnvironmentProblem(DsmoeError):
    """A tool, a package, a right or disk space that the command needs is missing."""

    exit_code = 8
