"""The pinned launcher where there is no GPU, and how it reports a run that died."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import stand_in
from support.launcher import lean_runner


def launch(checkout: Path, script: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(checkout / "bin" / "ds"), *options, str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def launch_lean(script: Path) -> subprocess.CompletedProcess:
    """One process, by what needs no torch."""
    command = lean_runner("--num_gpus", "1", str(script))
    environment = {**os.environ, "DSMOE_DEVICES": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


# One write a process: print would mix two processes' pieces.
SAY = r"""
import os
from pathlib import Path
command = Path(f"/proc/{os.getppid()}/cmdline").read_text()
loaded = "libtorch" in Path(f"/proc/{os.getppid()}/maps").read_text()
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
started = f"started by {'lean.py' in command} torch {loaded}"
os.write(1, f"I am {rank} {size}\n{started}\n".encode())
"""


@pytest.fixture(scope="module")
def say(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = tmp_path_factory.mktemp("say") / "say.py"
    script.write_text(SAY)
    return script


@pytest.fixture(scope="module")
def two(checkout: Path, say: Path) -> subprocess.CompletedProcess:
    """Two processes that say who they are, and what started them."""
    done = launch(checkout, say, "--num_gpus", "2")
    assert done.returncode == 0, done.stderr
    return done


def test_processes_without_gpus(two: subprocess.CompletedProcess, gpus: int) -> None:
    """As many processes as --num_gpus says, each with its rank."""
    if gpus:
        pytest.skip("this machine has GPUs; the patch is for machines without")
    assert sorted(line for line in two.stdout.splitlines() if "I am" in line) == [
        "I am 0 2",
        "I am 1 2",
    ]


def test_killed_run_is_a_failure(tmp_path: Path) -> None:
    """A launched process group that dies by a signal is not a success."""
    script = tmp_path / "die.py"
    # The launcher's child (deepspeed.launcher.launch) is this script's parent.
    script.write_text("import os, signal; os.kill(os.getppid(), signal.SIGKILL)\n")
    done = launch_lean(script)
    assert done.returncode == 128 + 9, done.stderr[-500:]


def test_failed_process_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text("import sys; sys.exit(3)\n")
    assert launch_lean(script).returncode != 0


def test_the_process_that_starts_the_others_is_light(two: subprocess.CompletedProcess) -> None:
    """It waits for the training processes, for which torch (seconds to import) is not needed."""
    assert two.stdout.count("started by True torch False") == 2, two.stdout + two.stderr


def on_two_hosts(folder: Path, script: str) -> subprocess.CompletedProcess:
    """The end of a run of ``script`` on two hosts, which the stand-in pdsh makes of this one."""
    (folder / "hosts").write_text("203.0.113.1 slots=1\n203.0.113.2 slots=1\n")
    (folder / "script.py").write_text(script)
    return subprocess.run(
        lean_runner("--hostfile", "hosts", "script.py"),
        cwd=folder,
        env={**os.environ, **stand_in.install(folder), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_process_that_starts_those_of_another_host_is_light(tmp_path: Path) -> None:
    done = on_two_hosts(
        tmp_path,
        "import os\n"
        "maps = open(f'/proc/{os.getppid()}/maps').read()\n"
        "os.write(1, f'torch {\"libtorch\" in maps}\\n'.encode())\n",
    )
    assert done.stdout.count("torch False") == 2, done.stdout + done.stderr


def test_a_host_starts_its_own_deepspeed(checkout: Path, tmp_path: Path) -> None:
    """Found by PYTHONPATH of there; one line where there is none."""
    from deepspeed.launcher.lean import ELSEWHERE

    there = tmp_path / "there" / "deepspeed"
    for part in ("launcher", "utils"):
        shutil.copytree(checkout / "deepspeed" / part, there / part)
    (there / "__init__.py").write_text("raise SystemExit('all of deepspeed is imported')")
    (there / "launcher" / "launch.py").write_text("print('started there')")
    (tmp_path / ".deepspeed_env").write_text(f"PYTHONPATH={there.parent}\n")
    done = on_two_hosts(tmp_path, "")
    assert done.stdout.count("started there") == 2, done.stdout + done.stderr
    nowhere = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", ELSEWHERE]  # -S: without site-packages
    done = subprocess.run(command, cwd=tmp_path, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "found no package deepspeed on this host" in done.stderr


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
print("I am", *(__import__("os").environ[name] for name in ("RANK", "WORLD_SIZE")))
"""


@pytest.mark.parametrize(
    "counted", ["2", "some", "1" * 5000, "1025", pytest.param(None, marks=pytest.mark.long)]
)
def test_the_runner_is_light_where_gpus_are_counted(
    checkout: Path, tmp_path: Path, counted: str | None, gpus: int
) -> None:
    """Where they are not, torch counts them; with none of them there is one process."""
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    lean = checkout / "deepspeed" / "launcher" / "lean.py"
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    env.pop("DSMOE_DEVICES", None)
    if counted:
        env["DSMOE_DEVICES"] = counted
    asked = [] if counted is None and not gpus else ["--num_gpus", "1"]
    done = subprocess.run(
        [sys.executable, str(lean), "runner", *asked, str(script)],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if counted not in ("2", None):
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"DSMOE_DEVICES='{counted[:60]}'; expected a number of GPUs up to" in done.stderr
        return
    assert f"runner True {counted is None}" in done.stdout, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if "I am" in line] == ["I am 0 1"]
