"""The one place where a command's failures become one line and an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Callable

from dsmoe.common.errors import DsmoeError, EnvironmentProblem
from dsmoe.common.output import patient_output

INTERRUPTED = 130
#: Set to 1, it shows the traceback of an expected failure too.
TRACEBACK_VARIABLE = "DSMOE_TRACEBACK"


def guarded(command: Callable[[], int], as_json: bool = False) -> int:
    """Run ``command``; its exit code, or that of the failure, which is told in one line.

    With ``as_json`` a failure is a JSON object on standard output too. Output that nobody can
    read any more, or that cannot be written, changes neither the work nor the exit code.
    """
    with patient_output():
        try:
            return command()
        except DsmoeError as error:
            return _tell(error, type(error).__name__, as_json)
        except KeyboardInterrupt:
            stopped = DsmoeError("interrupted by Ctrl-C; repeat the command to go on")
            stopped.exit_code = INTERRUPTED
            return _tell(stopped, "Interrupted", as_json)
        except OSError as error:
            return _tell(_problem(error), "EnvironmentProblem", as_json)


def _problem(error: OSError) -> DsmoeError:
    where = f"{error.filename}: " if error.filename else ""
    return EnvironmentProblem(
        f"{where}{error.strerror or error}; expected a file or folder that can be used so: free "
        f"space, correct its rights, or name another ({TRACEBACK_VARIABLE}=1 shows where)"
    )


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
    print(f"error: {error}", file=sys.stderr)
    for line in error.details:
        print(f"  {line}", file=sys.stderr)
    return error.exit_code
