"""scripts/setup.sh: what it installs, two at once, one that is stopped, and the Hopper kernels.

The Python that it gets answers as a real one, but its pip and its packages are files of the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

# {top}/lacks/EXTRA: the packages of EXTRA that are missing; pip removes such files, and logs.
PYTHON = """#!/usr/bin/env bash
top={top}
case "$*" in
*'find_spec("torch")'*) [ -e $top/torch ] ;;
"-c import torch; "*) echo 13 ;;
"-c import pip") [ -e "$(dirname "$0")/../pip" ] ;;
*"-m venv "*) mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python"; touch "${{@: -1}}/pip" ;;
*"-m pip "*)
    echo "$*" >>$top/pip.log
    if [ -e $top/kill ]; then rm $top/kill; kill -9 $PPID; exit 1; fi
    if [ -e $top/no-network ]; then exit 1; fi
    while [ -e $top/slow ]; do sleep 0.1; done
    rm -f $top/lacks/* ;;
"- "*.lock) exec {python} "$@" ;;
"- "*) shift 2; cd $top/lacks; for extra in "$@"; do cat "$extra" 2>/dev/null; done; true ;;
*) exec {python} "$@" ;;
esac
"""


class Machine:
    """A project's folder, and the environment of a machine without any package."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.project = top / "project"
        (self.project / "scripts").mkdir(parents=True)
        (top / "lacks").mkdir()
        shutil.copy2(ROOT / "scripts/setup.sh", self.project / "scripts")
        shutil.copy2(ROOT / "pyproject.toml", self.project)
        self.program("python3", PYTHON.format(top=top, python=sys.executable))
        active = ("VIRTUAL_ENV", "CONDA_PREFIX", "DSMOE_PYTHON", "DSMOE_KERNELS")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in active},
            "PATH": f"{top}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(top / "cache"),
        }

    def program(self, name: str, text: str) -> None:
        (self.top / name).write_text(text)
        (self.top / name).chmod(0o755)

    def lacks(self, extra: str, *packages: str) -> None:
        (self.top / "lacks" / extra).write_text("".join(f"{name}\n" for name in packages))

    def with_torch(self) -> None:
        """An active environment that has torch."""
        (self.top / "torch").touch()
        self.environment["VIRTUAL_ENV"] = str(self.top)

    def with_hopper(self) -> None:
        self.program("nvidia-smi", "#!/bin/sh\necho 9.0\n")

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.project / "scripts/setup.sh"), *arguments],
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def pip(self) -> list[str]:
        """The calls of pip so far, without the options before the packages."""
        log = self.top / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split("--disable-pip-version-check ")[1] for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_active_environment_gets_what_it_lacks_and_keeps_its_torch(machine: Machine) -> None:
    machine.with_torch()
    machine.lacks("run", "numpy", "rich>=13")
    machine.lacks("torch", "torch==9")
    done = machine.setup()
    assert (done.returncode, done.stdout) == (0, f"{machine.top}/python3\n"), done.stderr
    assert machine.pip() == ["numpy rich>=13"]
    again = machine.setup()
    assert (again.returncode, again.stderr) == (0, "") and len(machine.pip()) == 1


def test_without_an_environment_it_makes_one_once(machine: Machine) -> None:
    machine.lacks("run", "numpy")
    machine.lacks("torch", "torch==9")
    machine.lacks("dev", "pytest>=8")
    done = machine.setup("dev")
    assert (done.returncode, done.stdout) == (0, f"{machine.project}/.venv/bin/python\n")
    assert "half made" not in done.stderr
    assert machine.pip() == ["torch==9 numpy pytest>=8"]
    assert machine.setup("dev").stderr == ""


def test_two_at_once_install_once(machine: Machine) -> None:
    machine.lacks("run", "numpy")
    (machine.top / "slow").touch()
    both = [machine.start()]
    while not machine.pip():
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.05)
    both.append(machine.start())
    assert both[1].stderr is not None
    assert any("another set-up is at work" in line for line in both[1].stderr)
    (machine.top / "slow").unlink()
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out for out, _ in said} == {f"{machine.project}/.venv/bin/python\n"}
    assert machine.pip() == ["numpy"] and "another set-up" not in said[0][1]


def test_one_that_was_stopped_is_named_and_finished(machine: Machine) -> None:
    machine.lacks("run", "numpy")
    (machine.top / "kill").touch()
    assert machine.setup().returncode == -signal.SIGKILL
    done = machine.setup()
    assert done.returncode == 0 and "/.venv is half made" in done.stderr
    assert machine.pip() == ["numpy", "numpy"]
    assert machine.setup().stderr == ""


def test_a_pip_that_fails_is_an_error_with_what_to_do(machine: Machine) -> None:
    machine.lacks("run", "numpy")
    (machine.top / "no-network").touch()
    done = machine.setup()
    assert done.returncode == 8 and done.stdout == ""
    assert "error: pip could not install" in done.stderr and "repeat this command" in done.stderr


def test_an_unknown_argument_is_refused(machine: Machine) -> None:
    done = machine.setup("development")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert not machine.pip()


def test_the_kernels_for_hopper_are_asked_for_once_a_day(machine: Machine) -> None:
    machine.with_torch()
    machine.with_hopper()
    machine.lacks("hopper", "quack-kernels==9", "nvidia-cutlass-dsl==8")
    (machine.top / "no-network").touch()
    first = machine.setup()
    assert first.returncode == 0, first.stderr
    assert "pip could not install them" in first.stderr
    # this torch is built for CUDA 13
    assert machine.pip() == ["--retries 1 quack-kernels==9 nvidia-cutlass-dsl[cu13]==8"]
    second = machine.setup()
    [marker] = (machine.top / "cache/dsmoe").glob("no-hopper-*")
    assert second.returncode == 0 and f"to try again now: rm {marker}" in second.stderr
    assert len(machine.pip()) == 1
    os.utime(marker, (0, 0))  # days later
    assert machine.setup().returncode == 0 and len(machine.pip()) == 2
    machine.lacks("hopper", "quack-kernels==10")  # another release in the list
    assert machine.setup().returncode == 0 and len(machine.pip()) == 3


@pytest.mark.parametrize(("choice", "asked"), [("all", True), ("nccl", True), ("cublas", False)])
def test_the_choice_of_kernels_decides(choice: str, asked: bool, machine: Machine) -> None:
    machine.with_torch()
    machine.with_hopper()
    machine.lacks("hopper", "quack-kernels==9")
    assert machine.setup(DSMOE_KERNELS=choice).returncode == 0
    assert bool(machine.pip()) == asked


def test_the_help_of_the_benchmark_installs_nothing(machine: Machine) -> None:
    machine.lacks("run", "numpy")
    shutil.copy2(ROOT / "run_deepspeed_benchmark.sh", machine.project)
    shutil.copytree(ROOT / "dsmoe", machine.project / "dsmoe")
    done = subprocess.run(
        [str(machine.project / "run_deepspeed_benchmark.sh"), "1", "--help"],
        env={**machine.environment, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "NUM_GPUS" in done.stdout, done.stderr
    assert not machine.pip() and not (machine.project / ".venv").exists()


def test_an_environment_is_looked_at_without_importing_torch(machine: Machine) -> None:
    """At the start of every command; a folder that is called torch is no torch."""
    (machine.top / "torch").mkdir()
    (machine.top / "torch" / "__init__.py").write_text("raise SystemExit('imported')\n")
    machine.program("python3", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    asks = (ROOT / "scripts/setup.sh").read_text().split("has_torch() {")[1].split("\n}")[0]
    look = ["bash", "-c", f"f() {{ {asks}\n}}\nf {machine.top}/python3"]
    environment = {**machine.environment, "PYTHONPATH": str(machine.top)}
    assert subprocess.run(look, env=environment, cwd=ROOT).returncode == 0
    (machine.top / "torch" / "__init__.py").unlink()
    assert subprocess.run(look, env=environment, cwd=ROOT).returncode == 1
