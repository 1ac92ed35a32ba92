"""Which launcher is taken, where its processes go, and what is refused before anything starts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from support.commands import NO_GPU, dsmoe

from dsmoe.benchmark.launchers import outside, srun, which
from dsmoe.benchmark.launchers.kept.place import Place, place_by
from dsmoe.benchmark.preflight import machine
from dsmoe.benchmark.run.layout import Layout
from dsmoe.common.errors import DsmoeError, UsageError

JOB = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
GPUS = {**JOB, "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_PER_NODE": "h100:8"}


@pytest.fixture(autouse=True)
def srun_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"srun": "/usr/bin/srun"}  # and no scontrol, which would ask this machine's Slurm
    monkeypatch.setattr(srun.shutil, "which", found.get)
    monkeypatch.setattr(machine, "this_machine", lambda: NO_GPU)


def test_auto_says_what_it_took_and_why(tmp_path: Path) -> None:
    found, why = which.choose("auto", None, {})
    assert (found.name, found.way()) == ("local", None) and why.startswith("no host file")
    found, why = which.choose("auto", None, JOB)
    assert (found.name, why) == ("slurm", "inside job 12 of Slurm")
    (tmp_path / "hosts").write_text("a slots=2\n")
    # a file that the user names is meant, also inside of a job
    found, why = which.choose("auto", tmp_path / "hosts", JOB)
    assert (found.name, why) == ("ssh", f"host file {tmp_path / 'hosts'}")


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"),
    [
        ("slurm", {}, "found no job of Slurm around this command; expected one: salloc"),
        ("slurm", {**JOB, "SLURM_STEP_NUM_TASKS": "4"}, "found this command 4 times in a step"),
        ("slurm", {**JOB, "SLURM_TASKS_PER_NODE": "2"}, "found counts for 1 nodes, expected 2"),
        ("torchrun", {}, "found no RANK, WORLD_SIZE and MASTER_ADDR in the environment"),
        ("torchrun", {"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "found RANK=one"),
        ("torchrun", {"RANK": "7", "WORLD_SIZE": "1"}, "RANK=7, WORLD_SIZE=1 in the environment"),
        ("ssh", {}, "found no host file; name one with --hostfile FILE"),
    ],
)
def test_a_launcher_that_cannot_be_used_is_refused(
    wanted: str, environment: dict[str, str], expected: str
) -> None:
    with pytest.raises(DsmoeError, match=expected):
        which.choose(wanted, None, environment)


def test_a_host_file_is_for_ssh() -> None:
    with pytest.raises(UsageError, match="--launcher slurm does not go with --hostfile"):
        which.choose("slurm", Path("hosts"), JOB)


def test_processes_fill_nodes_by_tasks_or_gpus() -> None:
    tasks, gpus = srun.SlurmLauncher(JOB), srun.SlurmLauncher(GPUS)
    assert tasks.lay_out(2) == Layout(("n1",), 2)
    assert tasks.lay_out(4) == Layout(("n1", "n2"), 2)
    assert gpus.lay_out(16) == Layout(("n1", "n2"), 8)
    with pytest.raises(
        UsageError, match=r"job 12 has n1 slots=8, n2 .*salloc --nodes=4 --gpus-per"
    ):
        gpus.lay_out(32)
    with pytest.raises(
        UsageError, match=r"ask Slurm for them: salloc --nodes=3 --ntasks-per-node=2"
    ):
        tasks.lay_out(6)


def test_srun_gets_gpus_only_where_the_job_has_them() -> None:
    words = srun.SlurmLauncher(GPUS).srun(("n1", "n2"), 8)
    assert {"--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--nodelist=n1,n2"} < set(words)
    assert "--gpus-per-node=8" in words and "--overlap" in words
    assert not any("gpu" in word for word in srun.SlurmLauncher(JOB).srun(("n1",), 2))


# As Slurm 22.05 writes them.
TIME = (
    "slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-28T08:17:40 DUE TO TIME LIMIT ***"
)
CANCEL = "slurmstepd-n1: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-11-28T08:17:40 ***"
NODE = "srun: error: Node failure on n2"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TIME, "STEP 3.0 ON n1 CANCELLED AT .* DUE TO TIME LIMIT; its time limit is reached: ask"),
        (CANCEL, r"STEP 3.0 ON n1 CANCELLED AT 2026-11-28T08:17:40 \(scancel\)$"),
        (NODE, "Slurm: Node failure on n2; a node failed"),
        ("srun: error: n1: task 0: Exited with exit code 1", None),
    ],
)
def test_what_slurm_ended_itself_is_the_reason(said: str, expected: str | None) -> None:
    found = srun.ended_by_slurm(said.splitlines())
    if expected is None:
        assert found is None
    else:
        import re

        assert re.search(expected, found or ""), found


@pytest.mark.parametrize(
    ("launcher", "environment", "expected"),
    [
        ("torchrun", {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, Place(3, 1, 4)),
        ("torchrun", {"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 0, 2)),  # PyTorchJob
        ("torchrun", {"RANK": "4", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, None),
        ("torchrun", {"RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, None),
        ("torchrun", {"RANK": "-1", "WORLD_SIZE": "4"}, None),
        (
            "slurm",
            {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4"},
            Place(2, 0, 4),
        ),
        (
            "Open MPI",
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            Place(1, 1, 2),
        ),
    ],
)
def test_a_process_finds_its_place(
    launcher: str, environment: dict[str, str], expected: Place | None
) -> None:
    assert place_by(launcher, environment) == expected


def test_ranks_alone_do_not_mean_torchrun() -> None:
    """A shell may have RANK set; without MASTER_ADDR nothing was started by torchrun."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    assert outside.started_by(ranks) is None
    assert which.choose("auto", None, ranks)[0].name == "local"


def test_the_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "a b;$(touch planted)"
    options = ["--data", odd, "--launcher", "slurm", "--print-sbatch", "--per-host", "8"]
    assert dsmoe("run", 32, *options) == 0
    script = capsys.readouterr().out
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = ["nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "exclusive", "signal=B:TERM@60"]
    assert {f"#SBATCH --{option}" for option in wanted} < set(lines)
    words = shlex.split(lines[-1])
    assert words[0] == "exec" and words[2:5] == ["-m", "dsmoe", "run"]
    assert words[5:] == ["32", "--data", odd, "--launcher", "slurm"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--per-host 3", "--per-host 3: 32 processes do not fill nodes of 3"),
        ("--launcher ssh", "--print-sbatch is for --launcher slurm"),
        ("--suite smoke", "suite smoke has no case for 32"),  # not after its time in the queue
    ],
)
def test_a_batch_script_that_cannot_be(options: str, expected: str, capsys) -> None:
    assert dsmoe("run", 32, "--print-sbatch", *options.split()) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_no_gpu_is_asked_for_by_the_small_suite(capsys) -> None:
    assert dsmoe("train", 2, "--suite", "smoke", "--save", "m", "--print-sbatch") == 0
    out = capsys.readouterr().out
    assert "gpus" not in out and "--nodes=1\n" in out and "dsmoe train 2 --suite smoke" in out
