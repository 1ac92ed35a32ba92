"""A process of its own that reads host files with the launcher's own parser.

Run by path, ``python launcher_check.py FOLDER``, by launcher.py: importing DeepSpeed loads torch,
writes to the terminal, and may fail in many ways. Prints MARK and a JSON object
``{"files": {name: [[host, slots], ...]}}`` or ``{"error": text}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MARK = "dsmoe-launcher-answer "


def main(folder: str) -> int:
    """Parse every plain file in ``folder``."""
    body: dict[str, Any]
    try:
        from deepspeed.launcher.runner import fetch_hostfile
    except Exception as error:
        body = {"error": f"{type(error).__name__}: {error}"}
    else:
        body = {"files": {}}
        for path in sorted(Path(folder).iterdir()):
            if not path.is_file():
                continue
            try:
                body["files"][path.name] = list((fetch_hostfile(str(path)) or {}).items())
            except ValueError as error:
                body["files"][path.name] = str(error)
    print(MARK + json.dumps(body), flush=True)
    return 0


if __name__ == "__main__":
    # Run by path, so the first entry is this folder: its modules must not hide others' names.
    if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    sys.exit(main(sys.argv[1]))
