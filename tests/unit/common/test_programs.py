"""Outside programs that hang are ended after some seconds, and the message names them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dsmoe.common import programs


def test_a_program_that_ends_in_time() -> None:
    code = (
        "import sys; print('ready', flush=True)\n"
        "print(sys.stdin.read(), file=sys.stderr); sys.exit(3)"
    )
    for first in (None, ("ready", 20.0)):
        done = programs.ask([sys.executable, "-c", code], 30.0, text="é", first_word=first)
        assert (done.returncode, done.stdout, done.stderr) == (3, "ready\n", "é\n")


@pytest.mark.long
def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    code = (
        "import os, time; print('ready', flush=True)\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    real = subprocess.Popen

    def until_it_hangs(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        """However long a program takes to start, its limit begins here."""
        pid.unlink(missing_ok=True)
        process = real(*words, **options)
        while process.poll() is None and not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        return process

    monkeypatch.setattr(programs.subprocess, "Popen", until_it_hangs)
    begin = time.monotonic()
    with pytest.raises(programs.TimedOut, match=r"python\S* did not end within 1 s"):
        programs.ask(command, 1.0)
    with pytest.raises(programs.TimedOut, match=r"python\S* gave no answer within 1 s"):
        programs.ask(command, 50.0, first_word=("other", 1.0))
    # It answers and does not end: the whole time counts.
    with pytest.raises(programs.TimedOut, match=r"python\S* did not end within 2 s"):
        programs.ask(command, 2.0, first_word=("ready", 1.5))
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    with pytest.raises(FileNotFoundError):
        programs.ask([str(tmp_path / "absent")], 1.0)
