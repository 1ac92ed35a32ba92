"""The one place where a command's failures become one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any, Callable

from dsmoe.common import startup
from dsmoe.common.errors import DsmoeError, EnvironmentProblem
from dsmoe.common.interrupts import is_importing
from dsmoe.common.output import ProcessEnd, escaped, patient_output

INTERRUPTED = startup.INTERRUPTED
#: Set to 1, it shows the traceback of an expected failure too.
TRACEBACK_VARIABLE = "DSMOE_TRACEBACK"


def guarded(command: Callable[[], int], wants_json: Callable[[], bool] = lambda: False) -> int:
    """Run ``command``; its exit code, or that of the failure, which is told in one line.

    Where ``wants_json()`` is true a failure is a JSON object on standard output too. Output that
    nobody reads any more, or that cannot be written, changes neither the work nor the exit code,
    with one exception: JSON that standard output could not take is a failure, since it is the
    result. A command that calls output.end_process ends this process here.
    """
    interrupts = _Interrupts()
    at_once = False
    with patient_output() as output:
        try:
            try:
                interrupts.begin()
                code = command()
            except ProcessEnd as end:
                code, at_once = end.code, True
            finally:
                interrupts.hold()
        except BaseException as error:
            failure = _failure(error, interrupts.noted)
            if failure is None:
                raise
            return interrupts.end(_tell(*failure, _asked(wants_json)))
        if code == 0 and _asked(wants_json):
            why = output.why_lost()
            if why:
                lost = EnvironmentProblem(
                    f"standard output: {why}; expected room for the JSON of --json: what the "
                    "command did is done, its report is lost"
                )
                code = _tell(lost, "EnvironmentProblem", as_json=False)
        code = interrupts.end(code)
    if at_once:
        os._exit(code)
    return code


def _asked(wants_json: Callable[[], bool]) -> bool:
    try:
        return wants_json()
    except Exception:  # the command's own module cannot be imported: that failure is told
        return False


def _failure(error: BaseException, interrupted: bool) -> tuple[DsmoeError, str] | None:
    """The expected failure that ``error`` is and its name in JSON; None for a bug."""
    # A library may turn the KeyboardInterrupt in it into an error of its own.
    if isinstance(error, KeyboardInterrupt) or (interrupted and not isinstance(error, SystemExit)):
        stopped = DsmoeError("interrupted by Ctrl-C; repeat the command to go on")
        stopped.exit_code = INTERRUPTED
        return stopped, "Interrupted"
    if isinstance(error, DsmoeError):
        return error, type(error).__name__
    problem = None
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        problem = (
            f"{where}{error.strerror or error}; expected a file or folder that can be used so: "
            f"free space, correct its rights, or name another ({TRACEBACK_VARIABLE}=1 shows where)"
        )
    elif isinstance(error, UnicodeEncodeError):
        found = error.object[error.start : error.end]
        problem = (
            f"found the character {found!a:.40}, which {error.encoding} cannot write; expected "
            f"plain text: correct the name or the file that it comes from, or set PYTHONUTF8=1 "
            f"({TRACEBACK_VARIABLE}=1 shows where)"
        )
    elif isinstance(error, MemoryError):
        problem = "this machine has too little memory for it; ask for less, or free some"
    elif isinstance(error, Exception):
        problem = _failed_import(error)
    return None if problem is None else (EnvironmentProblem(problem), "EnvironmentProblem")


def _failed_import(error: Exception) -> str | None:
    """What to say of an error inside the import of a package that is not ours; None for others.

    Such a package may end at a variable of its own (TORCH_LOGS) or at a damaged installation.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and package not in ("dsmoe", "__main__"):
            why = " ".join(str(error).split())
            return (
                f"the package {package} cannot be imported: {type(error).__name__}: {why:.200}; "
                "expected one that can: correct the variable of the environment that it names, or "
                f"install it again ({TRACEBACK_VARIABLE}=1 shows where)"
            )
    return None


def _tell(error: DsmoeError, name: str, as_json: bool) -> int:
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exc()
    if as_json:
        report = {
            "outcome": "failed",
            "error": name,
            "message": str(error),
            "details": error.details,
            "exit_code": error.exit_code,
        }
        print(json.dumps(report, indent=2, sort_keys=True))
    print(f"error: {escaped(str(error))}", file=sys.stderr)
    for line in error.details:
        print(f"  {escaped(line)}", file=sys.stderr)
    return error.exit_code


class _Interrupts:
    """Ctrl-C in a command: the first is a KeyboardInterrupt, the second ends the process.

    Nothing changes outside of the main thread, and where Ctrl-C is ignored (nohup).
    """

    def __init__(self) -> None:
        self.noted = False
        self._before: Any = None
        self._hook = sys.unraisablehook

    def begin(self) -> None:
        if threading.current_thread() is threading.main_thread():
            ours = (signal.default_int_handler, startup.stop_at_once)
            before = signal.getsignal(signal.SIGINT)
            if before in ours:
                sys.unraisablehook = self._unraisable
                self._before = before
                signal.signal(signal.SIGINT, self._arrived)

    def hold(self) -> None:
        """From here on Ctrl-C waits: the command is over, and only its message is missing."""
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(self, code: int) -> int:
        """``code``; a program that Ctrl-C reaches while Python shuts down ends with it at once."""
        if self._before is not None:
            sys.unraisablehook = self._hook
            program = self._before is startup.stop_at_once
            after = (lambda *_: os._exit(code)) if program else self._before
            signal.signal(signal.SIGINT, after)
        return code

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if is_importing(frame):
            startup.stop_at_once()
        self.noted = True
        signal.signal(signal.SIGINT, startup.stop_at_once)
        raise KeyboardInterrupt

    def _unraisable(self, problem: Any) -> None:
        """A KeyboardInterrupt that arrives in a finalizer is dropped by Python: end here."""
        if problem.exc_type is KeyboardInterrupt:
            startup.stop_at_once()
        self._hook(problem)
