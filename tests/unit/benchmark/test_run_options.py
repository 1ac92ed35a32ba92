"""``dsmoe run`` before anything starts: what cannot be is refused, a dry run only prints."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import NO_GPU, dsmoe

from dsmoe.benchmark.data.indexed_dataset import PairWriter
from dsmoe.benchmark.launchers.deepspeed_runner import LOCAL
from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.preflight import machine
from dsmoe.benchmark.run.layout import Layout

PLANT = '; touch {0}/planted; $(touch {0}/planted) `touch {0}/planted` "x'


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda: NO_GPU)


def test_a_dry_run_prints_a_command_that_a_shell_reads_back(tmp_path: Path, capsys) -> None:
    output = tmp_path / PLANT.format("$PWD")
    assert dsmoe("run", 2, "--suite", "smoke", "--dry-run", "--output", output) == 0
    lines = capsys.readouterr().out.splitlines()
    words = shlex.split(lines[-1])
    assert words[words.index("--run-dir") + 1].startswith(str(output / "runs"))
    assert lines[1].startswith("# to be read: ")
    assert "launcher local (" in lines[0] and "DSMOE_DEEPSPEED" not in lines[0]
    assert f"# the DeepSpeed configuration would be {output}/runs/TIME-smoke" in lines[2]
    config = json.loads("".join(line[1:] for line in lines[3:-1]))
    assert config["zero_optimization"]["stage"] == 2
    # A real shell makes the same words of it.
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    quoted = " ".join([shlex.quote(sys.executable), "-c", shlex.quote(code), lines[-1]])
    done = subprocess.run(["sh", "-c", quoted], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout) == words
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_case_for_gpus_needs_none(tmp_path: Path, capsys) -> None:
    (tmp_path / "hosts").write_text("a slots=8\nb slots=8\n")
    options = ["--suite", "artifact", "--dry-run", "--output", tmp_path / "out"]
    assert dsmoe("run", 16, *options, "--hostfile", tmp_path / "hosts") == 0
    note, what, _, _, *config, command = capsys.readouterr().out.splitlines()
    assert note.startswith("# not to be run here: suite artifact needs GPUs")
    assert "artifact 4.5B on 16 GPUs" in what
    assert json.loads("".join(line[1:] for line in config))["fp16"]["enabled"]
    assert "--num_nodes 2 --num_gpus 8" in command
    assert not (tmp_path / "out").exists()


def test_a_token_pair_that_cannot_be_read_is_refused_before_the_set_up(tmp_path, capsys) -> None:
    with PairWriter(tmp_path / "text") as pair:
        pair.add_document(np.arange(100))
    options = ["--dry-run", "--output", tmp_path / "out", "--data", tmp_path / "text"]
    assert dsmoe("run", 1, *options) == 0
    (tmp_path / "text.bin").write_bytes(b"short")
    assert dsmoe("run", 1, *options) == 9
    assert "5 bytes, but the index describes 200" in capsys.readouterr().err


def test_the_launcher_is_told_how_many_gpus_were_counted(tmp_path: Path) -> None:
    here, hosts = Layout(("localhost",), 2), Layout(("a", "b"), 2, tmp_path / "hosts")
    job = Job(tmp_path, tmp_path, here, 1, gpus=4)
    assert LOCAL.added_environment(job)["DSMOE_DEVICES"] == "4"
    for other in (replace(job, gpus=None), replace(job, layout=hosts)):  # the host file says
        assert "DSMOE_DEVICES" not in LOCAL.added_environment(other)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("2 --zero-stage 3", "ZeRO stage 3 cannot train a mixture.*take --zero-stage 2"),
        ("2 --expert-parallel 3", "expert_parallel_size 3 does not divide 2 processes"),
        ("3", "suite smoke has no case for 3 GPUs; it has 1, 2, 4"),
        ("2 --micro-batches 5", "5 micro-batches do not divide the global batch of 16"),
        ("2 --micro-batch-size 3", "3 sequences on 2 processes do not make"),
        ("2 --micro-batch-size 4 --micro-batches 4", "4 times 4 sequences on 2"),
        ("2 --optimizer sgd --adafactor-mode artifact", "is for --optimizer adafac"),
        ("4 --suite artifact", "suite artifact needs GPUs and none was found"),
        ("2 --port 70000", "port 70000: expected a number from 1 to 65535"),
        ("2 --seed 18446744073709551616", "not a whole number from 0 to 9223372036854775807"),
        ("1 --steps 0", "'0' is not a whole number from 1"),
        ("1 --steps -1", "expected one argument|'-1' is not a whole number from 1"),
        ("1 --steps two", "'two' is not a whole number"),
        ("1 --steps 1e3", "'1e3' is not a whole number"),
        ("1 --time-out 0", "'0' is not a number above 0"),
        ("1 --time-out -1", "expected one argument|'-1' is not a number above 0"),
        ("1 --time-out nan", "'nan' is not a number above 0"),
        ("1 --data=", "argument --data: the name is empty"),
        ("1 --text-field=", "argument --text-field: the name is empty"),
        ("1 --tokenizer=", "argument --tokenizer: the name is empty"),
        ("8 --model 70B", "--model is for dsmoe plan alone"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(
    arguments: str, expected: str, tmp_path: Path, capsys
) -> None:
    suite = [] if "--suite" in arguments else ["--suite", "smoke"]
    assert dsmoe("run", *arguments.split(), *suite, "--output", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(expected, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [[], ["--plan"], ["--dry-run"]])
def test_kernels_that_do_not_exist_are_refused(
    option: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("DSMOE_KERNELS", "wrong")
    assert dsmoe("run", 1, "--suite", "smoke", *option, "--output", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "error: DSMOE_KERNELS='wrong'; expected one of all, nccl, cublas, torch"
    assert not (tmp_path / "out").exists()


def test_a_run_looks_at_its_files_once(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    requests: list = []
    run_cases = "dsmoe.benchmark.run.every_case.run_cases"
    monkeypatch.setattr(run_cases, lambda request, stop: requests.append(request) or 0)
    assert dsmoe("run", 1, "--suite", "smoke", "--data", "a.txt", "--output", "out") == 0
    [request] = requests
    assert [source.path for source in request.surveyed.sources] == [tmp_path / "a.txt"]
    assert request.text.paths == (str(tmp_path / "a.txt"),)


def test_events_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    pytest.importorskip("tensorboard", reason="the command asks for it first")
    (tmp_path / "file").write_text("")
    options = ["--output", tmp_path / "out", "--tensorboard", tmp_path / "file/events"]
    assert dsmoe("run", 1, "--suite", "smoke", *options) == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --tensorboard {tmp_path}/file/events: found that it cannot")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("7 --model 9B", "model '9B': expected one of 380M"),
        ("7 --model 70B", "1024 sequences does not divide among 7 GPUs"),
        ("8 --suite artifact --global-batch 8", "--global-batch: the cases of suite artifact are"),
        ("8 --device-memory 0", "'0' is not a number above 0"),
        ("8 --suite paper --per-host 3", "do not fill hosts of 3"),
    ],
)
def test_plans_that_cannot_be_made(arguments: str, expected: str, capsys) -> None:
    for command in (["plan"], ["run", "--plan"]):
        assert dsmoe(*command, *arguments.split()) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and expected in line


def test_a_plan_is_made_with_the_checkout_that_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "there").mkdir()
    assert dsmoe("run", 1, "--suite", "smoke", "--plan", "--deepspeed", tmp_path / "there") == 3
    assert f"{tmp_path}/there" in capsys.readouterr().err
