"""How a launch ends: a failed host, signals, a killed launcher. Real processes, stand-in pdsh."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support import stand_in
from support.launcher import lean_runner

# Only a hang comes near; what is not ended sleeps for longer.
SECONDS = 300
TWO = "203.0.113.1 slots=1\n203.0.113.2 slots=1\n"
SLEEP = """
import os, sys, time
rank = os.environ["RANK"]
open(f"up-{rank}", "w").write(str(os.getpid()))
if rank in sys.argv[2:]:
    sys.exit(5)
time.sleep(900)
"""


class Launch:
    """``deepspeed --hostfile …`` in a folder, with the stand-in pdsh."""

    def __init__(self, folder: Path, hosts: str, *words: str, **environment: str) -> None:
        self.folder = folder
        (folder / "hosts").write_text(hosts)
        (folder / "sleep.py").write_text(SLEEP)
        launcher = lean_runner("--hostfile", "hosts")
        self.process = subprocess.Popen(
            [*launcher, "sleep.py", *words],
            cwd=folder,
            env={**os.environ, **stand_in.install(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ranks(self, count: int) -> list[psutil.Process]:
        """The training processes, as soon as there are ``count``."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            files = [path.read_text() for path in self.folder.glob("up-*")]
            if len(files) == count and all(files):
                return [psutil.Process(int(text)) for text in files if psutil.pid_exists(int(text))]
            time.sleep(0.1)
        raise AssertionError(self.process.communicate()[0])

    def end(self) -> str:
        try:
            return self.process.communicate(timeout=SECONDS)[0]
        finally:
            self.leave_nothing()

    def leave_nothing(self) -> None:
        """Whatever came of the test: kill what still runs in its folder."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cwd() == str(self.folder):
                    process.kill()


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=SECONDS)
    return not alive


@pytest.mark.parametrize("how, code", [("exit 7", 7), ("signal 9", 137)])
def test_remote_failure_is_a_failure(
    how: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launch takes the failed host's status, also where pdsh itself returns 0."""
    from deepspeed.launcher import runner

    for name, value in {**stand_in.install(tmp_path), "PDSH_HOST_1": how}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner.sys, "executable", "/bin/true")
    Path("hosts").write_text(TWO)
    with pytest.raises(SystemExit) as ended:
        runner.main(["--hostfile", "hosts", "script.py"])
    assert ended.value.code == code


def test_first_failure_ends_the_others(tmp_path: Path) -> None:
    launch = Launch(tmp_path, TWO, "1")
    ranks = launch.ranks(2)
    try:
        assert all_gone(ranks)
        assert launch.process.wait(timeout=SECONDS) == 1
    finally:
        output = launch.end()
    assert "host 203.0.113.2: exited with exit code 1" in output


def test_signal_ends_everything(tmp_path: Path) -> None:
    """The signal goes to the launcher alone, as ``kill`` sends it."""
    launch = Launch(tmp_path, TWO)
    ranks = launch.ranks(2)
    launch.process.send_signal(signal.SIGTERM)
    try:
        assert all_gone(ranks)
        assert launch.process.wait(timeout=SECONDS) == 128 + signal.SIGTERM
    finally:
        launch.end()


def test_processes_end_with_a_killed_runner(tmp_path: Path) -> None:
    launch = Launch(tmp_path, TWO)
    ranks = launch.ranks(2)
    launch.process.kill()
    try:
        assert all_gone(ranks)
    finally:
        launch.end()


def test_processes_end_with_their_launcher(tmp_path: Path) -> None:
    """deepspeed.launcher.launch is killed, by the system's memory killer for one."""
    launch = Launch(tmp_path, "localhost slots=2\n")
    ranks = launch.ranks(2)
    launcher = ranks[0].parent()
    assert launcher is not None
    launcher.kill()
    try:
        assert all_gone(ranks)
        assert launch.process.wait(timeout=SECONDS) == 128 + 9
    finally:
        launch.end()
