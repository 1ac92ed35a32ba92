"""A run of two processes from options to row, record and events; then --resume skips it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.benchmark_runs import StartedRun

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.data.corpus import CorpusInfo
from dsmoe.benchmark.results.store import RECORDS
from dsmoe.benchmark.run.patched_deepspeed import Trees
from dsmoe.benchmark.run.resume import finished

# In every name and in the environment: a shell that read it would make a file.
PLANT = '; touch $PWD/planted; $(touch $PWD/planted) `touch $PWD/planted` "x'.replace("/", "")
OPTIONS = [
    *["--steps", "6", "--warmup", "2", "--optimizer", "adamw", "--precision", "bf16"],
    *["--micro-batch-size", "1", "--moe-layer", "deepspeed"],
]


def start(folder: Path, *more: str) -> StartedRun:
    places = ["--data", str(folder / f"text{PLANT}.txt")]
    places += ["--tensorboard", str(folder / f"events{PLANT}")]
    environment = {"NCCL_DEBUG": PLANT, "DSMOE_TEST": PLANT}
    output = folder / f"out{PLANT}"
    return StartedRun(output, "2", *places, *OPTIONS, *more, environment=environment)


@pytest.fixture(scope="module")
def run(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> StartedRun:
    """The run, at its end."""
    folder = tmp_path_factory.mktemp("real")
    (folder / f"text{PLANT}.txt").write_text("No play makes Jack a dull boy.\n" * 300)
    started = start(folder)
    started.end(120)
    assert started.code == 0, started.said
    return started


def test_options_reach_the_run_and_never_a_shell(run: StartedRun) -> None:
    folder = run.output.parent
    assert not [p for p in [*folder.rglob("*"), *Path.cwd().iterdir()] if p.name == "planted"]
    [record] = run.records()
    assert record.status == "ok"
    assert (len(record.warmup_seconds), len(record.step_seconds), len(record.losses)) == (2, 6, 8)
    case = Case.from_dict(record.case)
    assert (case.micro_batches, case.micro_batch_size, case.precision) == (2, 1, "bf16")
    assert (case.moe_implementation, case.optimizer) == ("deepspeed", "adamw")
    assert record.peak_memory_bytes


def test_the_configuration_is_kept_whole_and_is_what_the_engine_read(run: StartedRun) -> None:
    [record] = run.records()
    kept = json.loads((run.output / record.run_folder / "deepspeed.json").read_text())
    assert record.deepspeed_config == kept and kept["optimizer"]["type"] == "AdamW"
    log = (run.output / record.run_folder / "log.txt").read_text()
    assert re.search(r"bfloat16_enabled \.+ True", log)


def test_events_are_written_and_figures_are_printed(run: StartedRun) -> None:
    assert list(run.output.parent.glob("events*/*/events.out.tfevents.*"))
    for figure in ("tokens/s", "seconds per iteration", "first loss", "last loss", "peak memory"):
        assert figure in run.said


def test_a_finished_run_is_not_repeated(run: StartedRun) -> None:
    again = start(run.output.parent, "--resume")
    said = again.end(60)
    assert again.code == 0 and "finished already, skipped" in said and len(run.records()) == 1


def test_what_counts_as_the_same_run(run: StartedRun) -> None:
    """The case, the kind of device, the trees of DeepSpeed and the content of the text."""
    [record] = run.records()
    case, info = Case.from_dict(record.case), CorpusInfo(**record.data)
    trees = Trees(Path(), result=record.result_tree)

    def known(**changes: object) -> object:
        same = {"case": case, "device": "cpu", "trees": trees, "content": info}
        return finished(run.output, **{**same, **changes})  # type: ignore[arg-type]

    assert known() == record
    assert known(device="cuda") is None
    assert known(trees=Trees(Path(), result={"deepspeed": "0"})) is None
    assert known(content=CorpusInfo(**{**record.data, "content": "0" * 64})) is None
    assert known(case=Case.from_dict({**record.case, "seed": case.seed + 1})) is None


def test_a_failed_run_does_not_count(run: StartedRun, tmp_path: Path) -> None:
    [record] = run.records()
    values = json.loads(record.to_json())
    kept = ("exp_name", "instance", "num_hosts", "num_devices_per_host", "model_name", "device")
    kept += ("parameter_count", "case", "hardware", "versions", "result_tree", "data")
    failed = {name: values[name] for name in kept}
    failed.update(status="failed", reason="killed", schema=values["schema"])
    (tmp_path / RECORDS).write_text(json.dumps(failed) + "\n")
    case, trees = Case.from_dict(record.case), Trees(Path(), result=record.result_tree)
    assert finished(tmp_path, case, "cpu", trees, CorpusInfo(**record.data)) is None
