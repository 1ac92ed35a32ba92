"""The formula of a search's memory against the plan's count; and this machine's own prediction."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import Changes, changed
from dsmoe.benchmark.cases.pipelines import in_flight
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.plan.estimate import estimate
from dsmoe.benchmark.predict.amounts.parameters import parts
from dsmoe.benchmark.predict.memory import peak_bytes, pipeline_peak_bytes
from dsmoe.benchmark.predict.pipelines import stage_case
from dsmoe.benchmark.results.store import read_records

TUNED = find_case("tuned", 1)
#: The case without its pipeline, as a search's memory is by stage.
_10B = changed(
    find_case("tuned", 16), Changes(pipeline_parallel_size=1, zero_stage=2, micro_batch_size=32), 8
)
MEMORY = {
    "micro-batch 64": TUNED,
    "micro-batch 8": changed(TUNED, Changes(micro_batch_size=8), 1),
    "remat on 8": find_case("artifact", 8),
    "10B on 16": dataclasses.replace(_10B, reduce=None),
    "reduced once, remat": dataclasses.replace(_10B, reduce="step", remat=True),
    "ZeRO-1": changed(find_case("tuned", 4), Changes(zero_stage=1, micro_batch_size=16), 4),
    "8 stages, remat": find_case("scaled", 64),
    "8 stages, 15 micro-batches held": changed(
        find_case("scaled", 64), Changes(micro_batch_size=2, remat=False), 8
    ),
    "2 stages of other layers": changed(
        find_case("tuned", 2), Changes(pipeline_parallel_size=2, micro_batch_size=64), 2
    ),
}
#: A search leaves 8 % of the memory free, and dsmoe plan counts what it found.
TOLERANCE = 0.05
#: Of a CPU's seconds, where nothing else runs on it.
CPU_TOLERANCE = 0.20
#: A machine whose iterations spread more than this is shared: no time on it means anything.
QUIET = 0.15


def dsmoe(*words: str) -> str:
    """What ``dsmoe WORDS`` prints, in a process of its own as a user has it."""
    command = [sys.executable, "-m", "dsmoe", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORY)
def test_a_searchs_memory_is_near_the_plans(name: str) -> None:
    case: Case = MEMORY[name]
    plan = estimate(case, "cuda", ROOT / "build" / "DeepSpeed")
    stages, schedule = case.parallel.pipeline_parallel_size, case.parallel.pipeline_schedule
    stage = stage_case(case, stages, case.micro_batches)
    formula = pipeline_peak_bytes(stage, stages, schedule)
    assert formula == pytest.approx(plan["peak"], rel=TOLERANCE)
    print(f"{name}: formula {formula / plan['peak'] - 1:+.1%} of the plan")
    for number, part in enumerate(parts(case.model, case.remat, stages) if stages > 1 else ()):
        held = in_flight(stages, number, schedule, case.micro_batches)
        counted = plan["stages"][number]["peak"]
        assert peak_bytes(stage, part, held) == pytest.approx(counted, rel=TOLERANCE)


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What dsmoe calibrate says of this machine."""
    made = tmp_path_factory.mktemp("rates") / "cluster.json"
    dsmoe("calibrate", "--processes", "2", "--output", str(made))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_this_cpu_is_predicted_after_calibration(
    processes: int, rates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Skipped where the iterations spread, since then the CPU is shared (make test-prediction)."""
    count, suite = str(processes), ("--suite", "smoke")
    planned = json.loads(dsmoe("plan", count, *suite, "--cluster", str(rates), "--json"))
    dsmoe("run", count, *suite, "--output", str(tmp_path / "out"))
    record = read_records(tmp_path / "out" / "results_e2e.jsonl")[-1]
    assert record.spread is not None
    predicted, measured = planned["predicted"]["seconds"], record.median_seconds
    assert measured is not None
    with capsys.disabled():
        print(
            f"\n{processes} process(es): predicted {predicted:.4f} s, measured {measured:.4f} s "
            f"(spread {record.spread:.0%}), error {predicted / measured - 1:+.1%}; load "
            f"{os.getloadavg()[0]:.1f}"
        )
    if record.spread > QUIET:
        pytest.skip(f"iterations spread {100 * record.spread:.0f} %: the CPU is shared")
    assert predicted == pytest.approx(measured, rel=CPU_TOLERANCE)
