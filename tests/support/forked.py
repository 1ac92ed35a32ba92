"""A Python script in a fork of this process, which has imported torch: two seconds less a run.

As a process of its own it has its folder, arguments, output and exit code; DeepSpeed and this
project cannot be imported in it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch  # noqa: F401  (that is what a fork need not import)

HIDDEN = ("deepspeed", "dsmoe", "support")


def run_forked(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python SCRIPT ARGUMENTS`` in the script's folder."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_run(script, arguments, out.fileno(), err.fileno()))
        code = os.WEXITSTATUS(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess([str(script), *arguments], code, *texts)


def _run(script: Path, arguments: tuple[str, ...], out: int, err: int) -> int:
    """The exit code of the script, here."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(script.parent)
    for name in list(sys.modules):
        if name.split(".")[0] in HIDDEN:
            sys.modules[name] = None  # type: ignore[assignment]
    sys.argv = [script.name, *arguments]
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
