"""The pinned launcher where there is no GPU, and how it reports a run that died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def launch(checkout: Path, script: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(checkout / "bin" / "ds"), *options, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_processes_without_gpus(checkout: Path, tmp_path: Path, gpus: int) -> None:
    """As many processes as --num_gpus says, each with its rank; without it, one."""
    if gpus:
        pytest.skip("this machine has GPUs; the patch is for machines without")
    script = tmp_path / "say.py"
    script.write_text(  # one write a process: print would mix two processes' pieces
        "import os; e = os.environ\n"
        "os.write(1, f\"I am {e['RANK']} {e['WORLD_SIZE']}\\n\".encode())\n"
    )
    two = launch(checkout, script, "--num_gpus", "2")
    assert two.returncode == 0, two.stderr
    assert sorted(line for line in two.stdout.splitlines() if "I am" in line) == [
        "I am 0 2",
        "I am 1 2",
    ]
    one = launch(checkout, script)
    assert [line for line in one.stdout.splitlines() if "I am" in line] == ["I am 0 1"]


def test_killed_run_is_a_failure(checkout: Path, tmp_path: Path) -> None:
    """A launched process group that dies by a signal is not a success."""
    script = tmp_path / "die.py"
    # The launcher's child (deepspeed.launcher.launch) is this script's parent.
    script.write_text("import os, signal; os.kill(os.getppid(), signal.SIGKILL)\n")
    done = launch(checkout, script, "--num_gpus", "1")
    assert done.returncode == 128 + 9, done.stderr[-500:]


def test_failed_process_is_a_failure(checkout: Path, tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text("import sys; sys.exit(3)\n")
    assert launch(checkout, script, "--num_gpus", "1").returncode != 0


def test_the_process_that_starts_the_others_is_light(checkout: Path, tmp_path: Path) -> None:
    """It waits for the training processes, for which torch (seconds to import) is not needed."""
    script = tmp_path / "look.py"
    script.write_text(
        "import os; from pathlib import Path\n"
        "command = Path(f'/proc/{os.getppid()}/cmdline').read_text()\n"
        "loaded = 'libtorch' in Path(f'/proc/{os.getppid()}/maps').read_text()\n"
        "print('started by', 'lean.py' in command, 'torch', loaded)\n"
    )
    done = launch(checkout, script, "--num_gpus", "1")
    assert "started by True torch False" in done.stdout, done.stdout + done.stderr


def test_another_word_than_runner_is_one_line(checkout: Path) -> None:
    lean = str(checkout / "deepspeed" / "launcher" / "lean.py")
    done = subprocess.run([sys.executable, lean, "launch"], capture_output=True, text=True)
    said = "deepspeed: error: found 'launch', expected runner and the arguments of ds\n"
    assert (done.returncode, done.stderr) == (2, said)


# What the process that starts launch.py has loaded, from a training process: its grandparent.
LOOK = """
from pathlib import Path
parent = Path(f"/proc/{__import__('os').getppid()}/stat").read_text().rsplit(")", 1)[1].split()[1]
maps = Path(f"/proc/{parent}/maps").read_text()
print("runner", b"runner" in Path(f"/proc/{parent}/cmdline").read_bytes(), "libtorch" in maps)
"""


@pytest.mark.parametrize("counted", ["2", "some", "1" * 5000, "1025", None])
def test_the_runner_is_light_where_gpus_are_counted(
    checkout: Path, tmp_path: Path, counted: str | None
) -> None:
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    lean = checkout / "deepspeed" / "launcher" / "lean.py"
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    env.pop("DSMOE_DEVICES", None)
    if counted:
        env["DSMOE_DEVICES"] = counted
    done = subprocess.run(
        [sys.executable, str(lean), "runner", "--num_gpus", "1", str(script)],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if counted not in ("2", None):
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"DSMOE_DEVICES='{counted[:60]}'; expected a number of GPUs up to" in done.stderr
        return
    assert f"runner True {counted is None}" in done.stdout, done.stdout + done.stderr
