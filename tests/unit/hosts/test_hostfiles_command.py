"""The command as a user runs it: sources, exit codes, one line a failure, --json, --dry-run."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, hanging
from support.commands import dsmoe

from dsmoe.common.errors import EXIT_CODES, SourceProblem
from dsmoe.hosts.sources import local, slurm

SCRIPT = ROOT / "get_hostfiles.py"


def _run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RAY_", "CUDA_"))}
    clean.update(env)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=200,
    )


def _report(folder: Path, *arguments: str, **env: str) -> dict[str, Any]:
    done = _run(folder, *arguments, "--json", **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_list_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "mpi").write_text("10.0.0.1:8\n10.0.0.2:8\n")
    # The artifact's output folder has the package's own name: it must not be taken for it.
    (tmp_path / "deepspeed").mkdir()
    env = {"PYTHONPATH": str(tmp_path)}
    done = _run(tmp_path, "--hosts-file", "mpi", "--output", "deepspeed", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hosts from list (--hosts-file mpi was given): 2 with 16 slots" in done.stdout
    text = (tmp_path / "deepspeed" / "hostfile_2node").read_text()
    assert text == "10.0.0.1 slots=8\n10.0.0.2 slots=8\n"
    assert not (tmp_path / "hostfile").exists()


def test_slurm_is_taken_by_itself_and_a_list_goes_first(tmp_path: Path) -> None:
    job = {"SLURM_JOB_NODELIST": "127.0.0.[2-3]", "SLURM_GPUS_PER_NODE": "a100:4"}
    report = _report(tmp_path, "--dry-run", **job)
    assert (report["source"], report["device"]) == ("slurm", "gpu")
    assert "SLURM_JOB_NODELIST is set" in report["reason"]
    assert report["hosts"] == [{"name": f"127.0.0.{n}", "slots": 4} for n in (2, 3)]
    assert _report(tmp_path, "--dry-run", "--hosts", "10.0.0.1:2", **job)["source"] == "list"
    assert list(tmp_path.iterdir()) == []


def _stand_in(folder: Path, body: str) -> str:
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_this_machine_by_nvidia_smi_and_without_gpus(tmp_path: Path) -> None:
    # A torch that cannot be imported stands for "no torch": nvidia-smi is asked.
    (tmp_path / "torch.py").write_text("raise RuntimeError('broken')\n")
    lists = _stand_in(
        tmp_path / "two", "echo 'GPU 0: H (UUID: a)'; echo 'GPU 1: H'; echo '  MIG 1g'"
    )
    broken = {"PYTHONPATH": str(tmp_path), "DSMOE_DEEPSPEED": "/nonexistent"}
    report = _report(tmp_path, "--from", "local", PATH=lists, **broken)
    assert report["hosts"] == [{"name": "localhost", "slots": 2}]
    assert report["device"] == "gpu" and "nvidia-smi" in report["reason"]
    report = _report(tmp_path, "--from", "local", PATH=lists, CUDA_VISIBLE_DEVICES="1", **broken)
    assert report["hosts"] == [{"name": "localhost", "slots": 1}] and not report["warnings"]
    hidden = _report(tmp_path, "--from", "local", PATH=lists, CUDA_VISIBLE_DEVICES="", **broken)
    assert hidden["device"] == "cpu"
    none = _stand_in(tmp_path / "none", "echo 'No devices were found'; exit 6")
    report = _report(tmp_path, "--from", "local", "--slots", "3", PATH=none, **broken)
    assert report["hosts"] == [{"name": "localhost", "slots": 3}]
    assert report["device"] == "cpu" and "no GPU" in report["warnings"][0]
    assert (tmp_path / "hostfile_1node").read_text() == "localhost slots=3\n"


def test_torch_counts_first(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "class cuda:\n    device_count = staticmethod(lambda: 5)\nprint('noise')\n"
    )
    report = _report(tmp_path, "--from", "local", "--dry-run", PYTHONPATH=str(tmp_path))
    assert report["hosts"] == [{"name": "localhost", "slots": 5}]
    assert "torch" in report["reason"]


def test_probe(tmp_path: Path) -> None:
    with socket.socket() as listener, socket.socket() as closed:
        listener.bind(("127.0.0.2", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        # 127.0.0.3 refuses: the listener is bound to 127.0.0.2 alone.
        closed.bind(("127.0.0.3", 0))
        open_only = _run(tmp_path, "--hosts", "127.0.0.2:1", "--probe", port, "--dry-run")
        assert open_only.returncode == 0, open_only.stderr
        done = _run(tmp_path, "--hosts", "127.0.0.2:1,127.0.0.3:1", "--probe", port)
    assert done.returncode == 18
    assert "127.0.0.3 (" in done.stderr and "127.0.0.2 (" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--from", "elsewhere"], 2, "invalid choice"),
        (["--from", "list"], 2, "needs --hosts"),
        (["--from", "ray", "--hosts", "a:1"], 2, "does not go with"),
        (["--from", "slurm", "--ray-address", "a:1"], 2, "does not go with"),
        (["--hosts", "a", "--hosts-file", "b"], 2, "not allowed with"),
        (["--slots", "0"], 2, "'0'"),
        (["--slots", "eight"], 2, "'eight'"),
        (["--probe", "0", "--hosts", "a:1"], 2, "port"),
        (["--ray-timeout", "nan"], 2, "seconds"),
        (["--hosts-file", "absent"], 16, "No such"),
        (["--hosts-file", "/dev/zero"], 16, "not a regular file"),
        (["surplus"], 2, "unrecognized"),
        (["--hosts", "a,b:4", "--no-resolve"], 16, "no slot count for a"),
        (["--hosts", "10.0.0.1:8,10.0.0.2:4"], 16, "--slots 4"),
        (["--hosts", "$(touch pwned):4"], 16, "letters, digits"),
        (["--from", "slurm"], 17, "salloc"),
        (["--hosts", "10.0.0.1:4", "--output", "a/b"], 8, "--output"),
    ],
)
def test_one_line_and_the_documented_code(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    done = _run(tmp_path, *arguments, "--json")
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and words in done.stderr
    assert done.stderr.startswith("error: ")
    assert json.loads(done.stdout)["exit_code"] == code
    assert code in EXIT_CODES
    assert list(tmp_path.iterdir()) == []


def test_mixed_slots_and_two_names_on_request(tmp_path: Path) -> None:
    _report(tmp_path, "--hosts", "10.0.0.1:8,10.0.0.2:4", "--allow-mixed")
    assert (tmp_path / "hostfile").read_text() == "10.0.0.1 slots=8\n10.0.0.2 slots=4\n"
    same = ["--hosts", "127.0.0.1:4,localhost:4", "--dry-run"]
    assert _run(tmp_path, *same).returncode == 16
    assert _run(tmp_path, *same, "--no-resolve").returncode == 0


def test_programs_that_hang_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the program, or another way that needs it not."""
    for name in ("nvidia-smi", "scontrol"):
        hanging.program(tmp_path, name, hanging.CHILD_HANGS, monkeypatch)
    monkeypatch.setattr(local, "NVIDIA_SMI_SECONDS", 0.5)
    monkeypatch.setattr(local, "TORCH_SECONDS", 0.0)  # whatever this torch sees
    monkeypatch.setattr(slurm, "SCONTROL_SECONDS", 0.5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    begin = time.monotonic()
    assert dsmoe("hosts", "--from", "local", "--output", tmp_path) == SourceProblem.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "nvidia-smi did not end within 0.5 s" in said
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "127.0.0.[1-2]")
    assert dsmoe("hosts", "--from", "slurm", "--slots", 1, "--no-resolve", "--dry-run") in (0, 4)
    assert "scontrol did not end within 0.5 s" in capsys.readouterr().err
    assert time.monotonic() - begin < 50


def test_nvidia_smi_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "NVIDIA_SMI_SECONDS", 0.5)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no torch
    monkeypatch.setenv("PATH", _stand_in(tmp_path / "bin", "exec sleep 60"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    begin = time.monotonic()
    with pytest.raises(SourceProblem, match=r"nvidia-smi did not end within 0\.5 s") as refused:
        local.count_gpus()
    assert time.monotonic() - begin < 30 and "\n" not in str(refused.value)
