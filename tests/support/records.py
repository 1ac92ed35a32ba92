"""Run records for tests: one that finished, one that failed."""

from __future__ import annotations

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.results.record import RunRecord, failed, finite_or_none, labels, measured


def record(suite: str = "smoke", gpus: int = 2, device: str = "cpu", **changes) -> RunRecord:
    case = find_case(suite, gpus)
    values = {
        **labels(case, device, "p3.16"),
        "num_hosts": 1,
        "num_devices_per_host": gpus,
        "parameter_count": case.model.parameter_count,
        "device": device,
        "hardware": {"name": "test"},
        "versions": {"python": "3"},
        **measured(case, [2.0, 4.0, 2.5]),
        "losses": finite_or_none([5.0, float("nan"), 4.25]),
        "expert_load": [[0.25, 0.75]],
        "dropped_share": [0.125],
        "time_stamp": 1634066610.5,
    }
    return RunRecord(**{**values, **changes})


def failure(reason: str = "out of memory", suite: str = "smoke", gpus: int = 2) -> RunRecord:
    case = find_case(suite, gpus)
    device = "cpu" if suite == "smoke" else "cuda"
    return RunRecord(
        **labels(case, device, "p3.16"),
        num_hosts=1,
        num_devices_per_host=gpus,
        parameter_count=case.model.parameter_count,
        device=device,
        hardware={},
        versions={},
        **failed(case, reason),
    )
