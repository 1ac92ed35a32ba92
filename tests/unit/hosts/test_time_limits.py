"""Outside programs that hang are ended after some seconds, and the message names them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.commands import dsmoe

from dsmoe.benchmark.cases.choice import Wanted, chosen_cases
from dsmoe.benchmark.plan import estimate
from dsmoe.benchmark.preflight import asking, hosts, local, probe
from dsmoe.common import programs
from dsmoe.common.errors import ArchiveProblem, EnvironmentProblem, SourceProblem
from dsmoe.defects import against
from dsmoe.hosts.host import Host
from dsmoe.hosts.sources import local as local_source
from dsmoe.hosts.sources import slurm
from dsmoe.hosts.spaces import guardian, ssh
from dsmoe.hosts.spaces.link import Link
from dsmoe.patchset import git
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.sources import archive


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


def _stand_in(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_ssh_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(tmp_path, "ssh", "exec sleep 60", monkeypatch)
    monkeypatch.setattr(asking, "HELLO_SECONDS", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"^n2: ssh gave no answer within 0\.5 s"):
        way = asking.ssh_way(tmp_path / "hostfile")
        hosts.head_facts(Host("n2", 1), way, tmp_path, tmp_path)


def test_nvidia_smi_that_hangs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(tmp_path, "nvidia-smi", "sleep 60; exit 1", monkeypatch)
    monkeypatch.setattr(probe, "NVIDIA_SMI_SECONDS", 0.5)
    begin = time.monotonic()
    facts = probe.free_gpus()
    assert facts == {"free_gpus": None, "gpu_error": "nvidia-smi gave no answer within 0.5 s"}
    assert time.monotonic() - begin < 30  # its child, which has the output, is not waited for


def _hanging(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package before all others whose import does not end."""
    (folder / package).mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (folder / package / name).write_text("import time; time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_download_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hanging(tmp_path / "first", "pip", monkeypatch)
    monkeypatch.setattr(archive, "PIP_SECONDS", 0.5)
    monkeypatch.setattr(archive, "importable", lambda name: True)
    with pytest.raises(ArchiveProblem, match=r"pip did not download deepspeed==\S+ within 0\.5 s"):
        archive.fetch_archive(load_bases()[0], tmp_path / "cache", lambda text: None)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_plan_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hanging(tmp_path, "torch", monkeypatch)
    monkeypatch.setattr(estimate, "SIMULATION_SECONDS", 0.5)
    [case] = chosen_cases(Wanted(1, "smoke"), "cpu")
    with pytest.raises(EnvironmentProblem, match=r"the plan was not made within 0\.5 s"):
        estimate.estimate(case, "cpu", tmp_path)


def test_an_import_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hanging(tmp_path, "deepspeed", monkeypatch)
    monkeypatch.setattr(local, "IMPORT_SECONDS", 0.5)
    check = local.import_check(tmp_path)
    assert check.state == local.FAIL
    assert check.found == "importing it did not end within 0.5 s"


@pytest.mark.parametrize("name", ["ip", "tc", "ssh-keygen"])
def test_a_tool_of_namespaces_that_hangs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(tmp_path, name, "sleep 60; exit 1", monkeypatch)
    monkeypatch.setattr(guardian, "TOOL_SECONDS", 0.5)
    late = rf"{name} did not end within 0\.5 s"
    begin = time.monotonic()
    if name == "ip":
        with pytest.raises(subprocess.CalledProcessError) as said:
            guardian.ip("netns")
        assert re.search(late, said.value.stderr)
    elif name == "tc":
        with pytest.raises(EnvironmentProblem, match=late):
            Link("1gbit").apply("none", "eth0", leaves_host=True)
    else:
        with pytest.raises(EnvironmentProblem, match=late):
            ssh.make_keys(tmp_path)
    assert time.monotonic() - begin < 30


def test_a_python_to_judge_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(tmp_path, "python-there", "exec sleep 60", monkeypatch)
    monkeypatch.setattr(against, "START_SECONDS", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"python-there gave no answer for 1\.5 s"):
        against.run_proofs(tmp_path / "python-there", [], 1.0, lambda *_: None)


def test_programs_that_hang_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: one line that names the program, or another way that needs it not."""
    for name in ("nvidia-smi", "scontrol", "git"):
        _stand_in(tmp_path, name, "sleep 60; exit 1", monkeypatch)
    monkeypatch.setattr(local_source, "NVIDIA_SMI_SECONDS", 0.5)
    monkeypatch.setattr(local_source, "_count_by_torch", lambda: (0, "this torch sees none"))
    monkeypatch.setattr(slurm, "SCONTROL_SECONDS", 0.5)
    monkeypatch.setattr(git, "QUICK_SECONDS", 0.5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    begin = time.monotonic()
    assert dsmoe("hosts", "--from", "local", "--output", tmp_path) == SourceProblem.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "nvidia-smi did not end within 0.5 s" in said
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "127.0.0.[1-2]")
    assert dsmoe("hosts", "--from", "slurm", "--slots", 1, "--no-resolve", "--dry-run") in (0, 4)
    assert "scontrol did not end within 0.5 s" in capsys.readouterr().err
    assert dsmoe("apply", tmp_path, "--status") == EnvironmentProblem.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(
        r"git\S* (rev-parse )?did not end within 0.5 s", said
    )
    assert time.monotonic() - begin < 50
