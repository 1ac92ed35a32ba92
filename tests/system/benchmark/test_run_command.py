"""Options reach the run and never a shell; what cannot be is refused before anything starts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from dsmoe.benchmark.cases.chosen import chosen_cases, parser
from support import ROOT
from support.benchmark_runs import FrontDoor

from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.benchmark.results.store import RECORDS
from dsmoe.benchmark.run import launch
from dsmoe.benchmark.run.layout import Layout
from dsmoe.commands import run as cli
from dsmoe.common.errors import UsageError

PLANT = '; touch {0}/planted; $(touch {0}/planted) `touch {0}/planted` "x'


def planted(folder: Path) -> bool:
    return any(path.name == "planted" for path in [*folder.rglob("*"), *Path.cwd().iterdir()])


def test_a_run_with_hostile_names_then_resume(tmp_path: Path) -> None:
    plant = PLANT.format("$PWD").replace("/", "")  # a slash cannot be in a name
    text = tmp_path / f"text{plant}.txt"
    text.write_text("No play makes Jack a dull boy.\n" * 300)
    options = ["2", "--data", str(text), "--steps", "6", "--warmup", "2", "--optimizer", "adamw"]
    options += [
        "--precision",
        "bf16",
        "--tensorboard",
        str(tmp_path / f"events{plant}"),
        "--micro-batch-size",
        "1",
        "--moe-layer",
        "deepspeed",
    ]
    output = tmp_path / f"out{plant}"
    run = FrontDoor(output, *options, environment={"NCCL_DEBUG": plant, "DSMOE_TEST": plant})
    said = run.end(120)
    assert run.code == 0, said
    [record] = run.records()
    assert record.status == "ok" and not planted(tmp_path)
    assert (len(record.warmup_seconds), len(record.step_seconds), len(record.losses)) == (2, 6, 8)
    assert record.case["micro_batches"] == 2 and record.peak_memory_bytes
    assert record.case["moe_implementation"] == "deepspeed"
    # The configuration is kept whole, and is what the engine read.
    kept = json.loads((output / record.run_folder / "deepspeed.json").read_text())
    assert record.deepspeed_config == kept and kept["optimizer"]["type"] == "AdamW"
    log = (output / record.run_folder / "log.txt").read_text()
    assert re.search(r"bfloat16_enabled \.+ True", log)
    assert list(tmp_path.glob("events*/*/events.out.tfevents.*"))
    for figure in ("tokens/s", "seconds per iteration", "first loss", "last loss", "peak memory"):
        assert figure in said
    again = FrontDoor(output, *options, "--resume")
    said = again.end(60)
    assert again.code == 0 and "finished already, skipped" in said and len(run.records()) == 1
    # A failed run is not a finished one, nor is another text.
    lines = (output / RECORDS).read_text().replace(record.data["content"], "0" * 64)
    (output / RECORDS).write_text(lines)
    from dsmoe.benchmark.data.corpus import CorpusInfo
    from dsmoe.benchmark.run.patched_deepspeed import Trees
    from dsmoe.benchmark.run.resume import finished

    [other] = run.records()
    case = chosen_cases_of(other.case)
    trees = Trees(Path(), result=other.result_tree)
    info = CorpusInfo(**other.data)
    assert finished(output, case, "cpu", trees, info) == other
    assert finished(output, case, "cuda", trees, info) is None
    assert finished(output, case, "cpu", Trees(Path(), result={"deepspeed": "0"}), info) is None
    assert finished(output, case, "cpu", trees, CorpusInfo(**record.data)) is None


def chosen_cases_of(values: dict):
    from dsmoe.benchmark.cases.suites import Case, ModelCase, Parallel

    parts = {"model": ModelCase(**values["model"]), "parallel": Parallel(**values["parallel"])}
    return Case(**{**values, **parts})


def test_a_dry_run_prints_a_command_that_a_shell_reads_back(tmp_path: Path, capsys) -> None:
    output = tmp_path / PLANT.format("$PWD")
    assert cli.main(["2", "--suite", "smoke", "--dry-run", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = shlex.split(lines[-1])
    assert words[words.index("--run-dir") + 1].startswith(str(output / "runs"))
    assert lines[1].startswith("# to be read: ")
    assert f"# the DeepSpeed configuration would be {output}/runs/TIME-smoke" in lines[2]
    assert json.loads(lines[3][1:])["zero_optimization"]["stage"] == 2
    # A real shell makes the same words of it.
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    quoted = " ".join([shlex.quote(sys.executable), "-c", shlex.quote(code), lines[-1]])
    done = subprocess.run(["sh", "-c", quoted], capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout) == words
    assert list(tmp_path.iterdir()) == []


def test_the_launcher_is_told_how_many_gpus_were_counted(tmp_path: Path) -> None:
    here, hosts = Layout(("localhost",), 2), Layout(("a", "b"), 2, tmp_path / "hosts")
    job = launch.Job(tmp_path, tmp_path, here, 1, gpus=4)
    assert job.added_environment()["DSMOE_DEVICES"] == "4"
    for other in (replace(job, gpus=None), replace(job, layout=hosts)):  # the host file says
        assert "DSMOE_DEVICES" not in other.added_environment()


def test_a_dry_run_of_a_case_for_gpus_needs_none(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cli, "this_machine", lambda: Machine("cpu", "cpu", {}, {}))
    (tmp_path / "hosts").write_text("a slots=8\nb slots=8\n")
    options = ["--suite", "artifact", "--dry-run", "--output", str(tmp_path / "out")]
    assert cli.main(["16", *options, "--hostfile", str(tmp_path / "hosts")]) == 0
    note, what, _, _, config, command = capsys.readouterr().out.splitlines()
    assert note.startswith("# not to be run here: suite artifact needs GPUs")
    assert "artifact 4.5B on 16 GPU(s)" in what and json.loads(config[1:])["fp16"]["enabled"]
    assert "--num_nodes 2 --num_gpus 8" in command
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["2", "--zero-stage", "3"], "ZeRO stage 3 cannot train a mixture.*take --zero-stage 2"),
        (["2", "--expert-parallel", "3"], "expert_parallel 3 does not divide 2 processes"),
        (["3"], "suite smoke has no case for 3 GPUs; it has 1, 2, 4"),
        (["2", "--micro-batches", "5"], "5 micro-batches do not divide the global batch of 16"),
        (["2", "--micro-batch-size", "3"], "3 sequences on 2 processes do not make"),
        (["2", "--micro-batch-size", "4", "--micro-batches", "4"], "4 times 4 sequences on 2"),
        (["2", "--optimizer", "sgd", "--adafactor-mode", "artifact"], "is for --optimizer adafac"),
        (["4", "--suite", "artifact"], "suite artifact needs GPUs and none was found"),
        (["2", "--port", "70000"], "port 70000: expected a number from 1 to 65535"),
        (["2", "--seed", "18446744073709551616"], "not a whole number below 2"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(
    arguments: list[str], expected: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(cli, "this_machine", lambda: Machine("cpu", "cpu", {}, {}))
    suite = [] if "--suite" in arguments else ["--suite", "smoke"]
    assert cli.main([*arguments, *suite, "--output", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(expected, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [[], ["--plan"], ["--dry-run"]])
def test_kernels_that_there_are_not(option: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("DSMOE_KERNELS", "wrong")
    arguments = ["1", "--suite", "smoke", *option, "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "error: DSMOE_KERNELS='wrong'; expected one of all, nccl, cublas, torch"
    assert not (tmp_path / "out").exists()


def test_events_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    options = ["--output", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "file/events")]
    assert cli.main(["1", "--suite", "smoke", *options]) == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --tensorboard {tmp_path}/file/events: found that it cannot")


def test_every_exit_code_is_documented() -> None:
    from dsmoe.benchmark import errors
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.common.errors import DsmoeError, EnvironmentProblem

    lines = (ROOT / "docs" / "reference" / "exit-codes.md").read_text().splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines if "|" in line}
    known = (DsmoeError, UsageError, EnvironmentProblem, errors.DataError, errors.ResultsError)
    for kind in (*known, patched_deepspeed.CheckoutFailed):
        assert rows[str(kind.exit_code)], kind


@pytest.mark.parametrize("word", ["0", "-1", "two", "1e3"])
def test_numbers_that_are_none(word: str, capsys) -> None:
    for option in (["--steps", word], ["--time-out", word if word != "1e3" else "nan"]):
        assert cli.main(["1", *option]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "is not a" in line and "--help" in line


def cases(*arguments: str, device: str = "cuda"):
    return chosen_cases(parser().parse_args(arguments), device)


def test_suite_tuned_takes_larger_micro_batches_where_they_fit() -> None:
    sizes = {}
    for gib in (None, 80, 141):
        options = parser().parse_args(["4", "--all", "--suite", "tuned"])
        found = chosen_cases(options, "cuda", gib and gib * 2**30)
        sizes[gib] = [case.micro_batch_size for case in found]
    assert sizes == {None: [64, 64, 32], 80: [64, 64, 32], 141: [128, 128, 32]}
    options = parser().parse_args(["1", "--suite", "tuned", "--micro-batch-size", "32"])
    assert chosen_cases(options, "cuda", 2**38)[0].micro_batch_size == 32
    options = parser().parse_args(["1"])
    assert chosen_cases(options, "cuda", 2**38)[0].micro_batch_size == 8


def test_options_change_the_case_and_nothing_else() -> None:
    [case] = cases("4")
    assert (case.suite, case.micro_batches, case.aux_loss_coefficient) == ("artifact", 32, 0.01)
    [case] = cases("4", "--micro-batch-size", "16", "--no-remat", "--precision", "bf16")
    assert (case.micro_batches, case.micro_batch_size, case.remat) == (16, 16, False)
    config = deepspeed_config(case, "cuda", ("/events", "run"))
    assert config["train_batch_size"] == 1024 and config["bfloat16"] == {"enabled": True}
    assert config["tensorboard"] == {"enabled": True, "output_path": "/events", "job_name": "run"}
    [case] = cases("1", "--suite", "tuned", "--num-experts", "64")
    assert (case.model.name, case.model.num_experts, case.model.hidden_size) == (
        "380M-E64",
        64,
        768,
    )
    with pytest.raises(UsageError, match="the models of suite artifact are the paper's"):
        cases("1", "--num-experts", "64")
    [case] = cases("1", "--adafactor-mode", "artifact")
    params = deepspeed_config(case, "cuda")["optimizer"]["params"]
    assert (params["mode"], params["relative_step"]) == ("artifact", True)
    assert [c.parallel.processes for c in cases("8", "--all")] == [1, 4, 8]
    assert [c.iterations for c in cases("32", "--all")] == [5] * 5
    with pytest.raises(UsageError, match="this machine has 2; name at most that many"):
        cli.check_device(cases("4"), "cuda", 2)
