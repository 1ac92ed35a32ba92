"""The plan's table, and a plan against what a GPU takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import NO_GPU, cases_of, dsmoe

from dsmoe.benchmark.cases.case import Case, Parallel
from dsmoe.benchmark.cases.suites import MODELS
from dsmoe.benchmark.plan.estimate import estimate, simulated
from dsmoe.benchmark.preflight import machine
from dsmoe.benchmark.results.store import read_records
from dsmoe.benchmark.run import patched_deepspeed


@pytest.mark.long
def test_a_plan_of_a_thousand_gpus_needs_none(checkout: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say=print: None)
    # The second command asks for the same simulation.
    known: dict[str, list[dict[str, Any]]] = {}

    def once(specs: list[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
        key = repr(specs)
        if key not in known:
            known[key] = simulated(specs, place)
        return known[key]

    monkeypatch.setattr("dsmoe.benchmark.plan.estimate.simulated", once)
    arguments = ["plan", 1024, "--model", "27B", "--device-memory", 30]
    assert dsmoe(*arguments) == 0
    said = capsys.readouterr().out
    assert "plan 27B on 1024 processes: ZeRO-2, expert parallel 8" in said
    # Two bytes a local parameter, by the closed formula: 48 experts of 8 layers, 6 to a process.
    model, h = MODELS["27B"], 2048
    expert = 2 * 8 * h * h + 8 * h + h
    local = model.parameter_count - 8 * (48 - 6) * expert
    assert re.search(rf"parameters +{2 * local / 2**30:.3f} ", said)
    assert "all-to-all" in said and "all-gather" in said and "fits: " in said
    # As JSON, and with too little memory: exit code 1, and the verdict says so.
    assert dsmoe(*arguments[:-1], 8, "--json") == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is False and plan["verdict"].startswith("does not fit: ")
    assert plan["local_parameters"] == local
    assert Case.from_dict(plan["case"]).parallel == Parallel(1024, 8)
    assert len(known) == 1
    # what is not stated is that of the GPUs whose time is predicted
    assert dsmoe(*arguments[:4], "--json") == 0
    assert "80.0 GiB" in json.loads(capsys.readouterr().out)["verdict"]


def test_what_is_chosen_by_memory_goes_by_the_memory_of_the_verdict(
    checkout: Path, capsys, monkeypatch
) -> None:
    """A step's fp32 sums do not fit in the 80 GiB of the GPUs whose time is predicted."""
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say=print: None)
    monkeypatch.setattr(machine, "this_machine", lambda: NO_GPU)
    plan = {"peak": 2**30, "sent": {}, "local_parameters": 1, "kinds": {}, "most": {}}
    monkeypatch.setattr("dsmoe.benchmark.plan.estimate.simulated", lambda *_: [plan])
    found = []
    for options in ([], ["--device-memory", 80]):
        assert dsmoe("plan", 64, "--model", "70B", *options, "--json") == 0
        found.append(json.loads(capsys.readouterr().out)["case"]["reduce"])
    assert found == ["micro_batch", "micro_batch"]


@pytest.mark.gpu
@pytest.mark.parametrize("suite", ["artifact", "tuned"])
def test_the_plan_is_what_a_gpu_takes(suite: str, checkout: Path, tmp_path: Path) -> None:
    """One iteration of the suite's case for one GPU, as it is but for small micro-batches."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    arguments = ["--suite", suite, "--micro-batch-size", "8", "--steps", "1", "--warmup", "1"]
    assert dsmoe("run", 1, *arguments, "--output", tmp_path) == 0
    [record] = read_records(tmp_path / "results_e2e.jsonl")
    [case] = cases_of("1", *arguments)
    plan = estimate(case, "cuda", checkout)
    assert plan["peak"] == pytest.approx(record.peak_memory_bytes, rel=0.1)
