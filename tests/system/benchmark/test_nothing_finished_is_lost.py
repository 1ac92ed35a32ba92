"""A run whose iterations finished keeps its figures, whatever fails after them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.benchmark_runs import StartedRun

from dsmoe.benchmark.results.rows import read_rows
from dsmoe.benchmark.results.store import ROWS

# Python imports this when a process starts; it makes the evaluation fail in those that train.
FAILING_EVALUATION = """
import importlib.abc, importlib.util, sys

NAME = "dsmoe.benchmark.train.measures"

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            def held_out_loss(*arguments):
                raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
            module.held_out_loss = held_out_loss

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def test_a_failing_evaluation_is_a_field_and_not_a_failed_run(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FAILING_EVALUATION)
    paths = os.pathsep.join([str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")])
    run = StartedRun(tmp_path / "out", "1", environment={"PYTHONPATH": paths})
    run.end()
    assert run.code == 0, run.said
    [record] = run.records()
    assert record.status == "ok" and record.reason is None
    assert record.evaluation_error is not None and "out of memory" in record.evaluation_error
    assert "in held_out_loss" in record.evaluation_error
    assert record.held_out_loss is None
    # What was taken before it is there, and the row has its figure.
    assert len(record.step_seconds) == 5 and record.median_seconds
    assert record.expert_load and record.dropped_share and record.peak_memory_bytes
    [row] = read_rows(run.output / ROWS)
    assert row.value["tflops"] > 0
    assert "evaluation failed" in run.said


@pytest.mark.slow
def test_two_deterministic_runs_have_the_same_losses(checkout: Path, tmp_path: Path) -> None:
    runs = [StartedRun(tmp_path / name, "1", "--deterministic") for name in ("a", "b")]
    assert [(run.end(180), run.code)[1] for run in runs] == [0, 0]
    [one], [two] = (run.records() for run in runs)
    assert one.losses == two.losses and one.held_out_loss == two.held_out_loss
