"""The ranking of settings, pipelines, and clusters as files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import dsmoe

from dsmoe.benchmark.cases.choice import Changes, case_of_model
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.predict.paper import paper_points
from dsmoe.benchmark.predict.pipelines import stage_case
from dsmoe.benchmark.predict.rates import choose_cluster
from dsmoe.benchmark.predict.rates.cluster import FOLDER, RATES, load_cluster, parse
from dsmoe.benchmark.predict.rates.from_calibration import cluster_of
from dsmoe.benchmark.predict.rates.row_checks import LEAST, MOST
from dsmoe.benchmark.predict.search import (
    USABLE,
    NothingFits,
    explanation,
    next_best,
    search,
    search_lines,
)
from dsmoe.common.errors import UsageError

GIB = 1 << 30


def test_what_is_ranked_fits_and_is_in_order() -> None:
    cluster = load_cluster("h100-400g")
    found, tried = search(case_of_model("70B", 64, Changes()), cluster, 80 * GIB)
    seconds = [one.found.seconds for one in found]
    assert seconds == sorted(seconds)
    assert 1 < len(found) < tried
    assert all(one.peak <= USABLE * 80 * GIB for one in found)
    assert len({one.words for one in found}) == len(found)
    lines = search_lines(found, tried, 80 * GIB)
    assert max(map(len, lines)) <= 80
    at = lines.index("options of the first:")
    assert "".join(lines[at + 1 :]).replace(" \\", "").split() == found[0].words.split()
    words = explanation(found[0], found[1])
    assert found[1].words in words or "same time" in words
    other = next_best(found)
    assert (other.peak, other.found.seconds) != (found[0].peak, found[0].found.seconds)
    assert "s less than the next, which takes" in explanation(found[0], other)


def test_what_is_asked_for_is_not_searched() -> None:
    cluster, case = load_cluster("p4d.24xlarge"), find_case("paper", 8)
    asked = Changes(expert_parallel_size=2, zero_stage=1, remat=True, pipeline_parallel_size=1)
    found, tried = search(case, cluster, 40 * GIB, asked=asked)
    assert 1 < len(found) <= tried
    for one in found:
        parallel = one.case.parallel
        assert (one.stages, one.case.remat) == (1, True)
        assert (parallel.expert_parallel_size, parallel.zero_stage) == (2, 1)
    piped, _ = search(case, cluster, 40 * GIB, asked=Changes(pipeline_schedule="eager"))
    assert {one.schedule for one in piped if one.stages > 1} == {"eager"}
    with pytest.raises(NothingFits, match="no setting of the search has the options"):
        search(case, cluster, 40 * GIB, asked=Changes(micro_batch_size=3))


def test_nothing_that_fits_is_one_line() -> None:
    with pytest.raises(NothingFits, match=r"none of 570 settings fits into 8 GiB"):
        search(find_case("paper", 64), load_cluster("p3.16xlarge"), 8 * GIB)


def test_pipelines_are_ranked_where_they_are_asked_for() -> None:
    found, _ = search(find_case("paper", 16), load_cluster("p3.16xlarge"), 16 * GIB, (1, 2, 4))
    assert found[0].stages > 1
    assert found[0].words.startswith(f"--pipeline {found[0].stages} ")


@pytest.mark.parametrize(
    ("suite", "searched", "gpus", "cluster", "memory"),
    [
        ("scaled", "paper", 1, "p3.16xlarge", 16),
        ("scaled", "paper", 8, "p3.16xlarge", 16),
        ("scaled", "paper", 16, "p3.16xlarge", 16),
        ("scaled", "paper", 32, "p3.16xlarge", 16),
        ("scaled", "paper", 64, "p3.16xlarge", 32),
        ("tuned", "tuned", 16, "h100-400g", 80),
        ("tuned", "tuned", 32, "h100-400g", 80),
        ("tuned", "tuned", 64, "h100-400g", 80),
    ],
)
def test_a_suite_of_the_search_is_what_it_finds(
    suite: str, searched: str, gpus: int, cluster: str, memory: int
) -> None:
    """The case is one of those that are found, and at most 1 % behind the fastest."""
    case = find_case(suite, gpus)
    stages = case.parallel.pipeline_parallel_size
    found, _ = search(find_case(searched, gpus), load_cluster(cluster), memory * GIB)
    here = dataclasses.replace(stage_case(case, stages, case.micro_batches), source="", suite="")
    [one] = [
        one
        for one in found
        if (one.stages, one.schedule) == (stages, case.parallel.pipeline_schedule)
        and dataclasses.replace(one.case, source="", suite="") == here
    ]
    assert one.found.seconds <= 1.01 * found[0].found.seconds
    assert (stages > 1) == (gpus > 8)


def test_the_largest_case_of_scaled_fits_no_gpu_of_the_paper() -> None:
    """Why its settings are those for GPUs of 32 GB."""
    with pytest.raises(NothingFits):
        search(find_case("paper", 64), load_cluster("p3.16xlarge"), 16 * GIB)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 9}, "no cluster of schema 1"),
        ({"rates": {}}, "rates are missing: product_16bit"),
        ({"gpus_per_host": 0}, "gpus_per_host is 0"),
        ({"device": "tpu"}, "expected cpu or cuda"),
    ],
)
def test_a_damaged_cluster_is_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    values = json.loads((FOLDER / "h100-400g.json").read_text(encoding="utf-8"))
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({**values, **change}), encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        load_cluster(str(path))


@pytest.mark.parametrize(
    "value", ["fast", None, True, math.nan, math.inf, 0, -1.5, 1e-320, 1e308, 10**400]
)
def test_a_rate_that_is_none_is_named_when_it_is_read(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a number so small or large that the figure would be nan."""
    values = json.loads((FOLDER / "h100-400g.json").read_text(encoding="utf-8"))
    values["rates"]["memory"]["value"] = value
    file = tmp_path / "edited.json"
    with pytest.raises(ValueError, match=re.escape(f"the rate memory is {value!r:.40}")):
        parse(values)
    file.write_text(json.dumps(values), encoding="utf-8")
    command = ["plot", "--predicted", "--cluster", file, "--output", tmp_path / "figure"]
    assert dsmoe(*command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("edge", [LEAST, MOST])
@pytest.mark.parametrize("rate", RATES)
def test_the_figure_of_any_rate_in_range_is_finite(rate: str, edge: float) -> None:
    cluster = load_cluster("p3.16xlarge")
    points = paper_points(dataclasses.replace(cluster, rates={**cluster.rates, rate: edge}))
    for point in points:
        assert 0 < point.published < math.inf and 0 < point.dsmoe_pipeline < math.inf


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="expected one of h100-100g"):
        load_cluster("v100")


ROWS: list[dict[str, Any]] = [
    {"kind": "launch", "name": "eager", "operations": 100, "ms": 0.5, "processes": 1},
    {"kind": "launch", "name": "autograd", "operations": 100, "ms": 1.5, "processes": 1},
    {
        "kind": "sustained",
        "name": "fc1 and fc2",
        "shape": [1, 1000, 1000, 1000],
        "dtype": "float16",
        "ms": 4.0,
        "processes": 1,
    },
    {"kind": "optimizer", "name": "add-in-place", "elements": 10**6, "ms": 0.012, "processes": 1},
    {"kind": "collective", "name": "all-to-all", "group": 2, "bytes": 2e9, "ms": 10.0},
    {"kind": "collective", "name": "all-reduce", "group": 2, "bytes": 64, "ms": 0.02},
    {"kind": "product", "name": "qkv", "error": "out of memory", "processes": 1},
]


def machine(**hardware: Any) -> Any:
    return SimpleNamespace(
        instance="box", device="cuda", versions={}, hardware={"device_name": "card", **hardware}
    )


def test_rates_come_from_the_rows_and_say_when_they_do_not() -> None:
    made = cluster_of(machine(device_memory_bytes=GIB), 2, ROWS)
    rates = {name: rate["value"] for name, rate in made["rates"].items()}
    assert rates["launch"] == pytest.approx(5.0)
    assert rates["launch_backward"] == pytest.approx(10.0)
    assert rates["product_16bit"] == pytest.approx(1.0)  # 4e9 operations in 4 ms
    assert rates["memory"] == pytest.approx(1000.0)  # 12 MB in 12 us
    assert rates["inside"] == pytest.approx(100.0)  # half of 2 GB in 10 ms
    assert rates["inside_latency"] == pytest.approx(20.0)
    assert "not measured" in made["rates"]["between"]["source"]
    assert made["rows"] == ROWS
    assert parse(json.loads(json.dumps(made))).gpus_per_host == 2


def test_a_runs_prediction_needs_known_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path))
    case = find_case("tuned", 1)
    assert choose_cluster.prediction_here(case, 1, machine()) == {}
    made = cluster_of(machine(device_memory_bytes=GIB), 1, ROWS)
    choose_cluster.calibrated_file().write_text(json.dumps(made), encoding="utf-8")
    assert choose_cluster.prediction_here(case, 1, machine())["cluster"] == "box"
    choose_cluster.calibrated_file().write_text("{}", encoding="utf-8")  # of another version
    assert choose_cluster.prediction_here(case, 1, machine()) == {}
