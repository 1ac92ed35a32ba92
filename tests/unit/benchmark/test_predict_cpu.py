"""A CPU's seconds by the rows of dsmoe calibrate, against hand-made rows."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.predict.amounts.traffic import Sent
from dsmoe.benchmark.predict.amounts.work import Sizes, sizes_of
from dsmoe.benchmark.predict.cpu import EXCHANGE, REDUCTIONS, CpuRows, stack_of
from dsmoe.benchmark.predict.price import Prices
from dsmoe.benchmark.predict.rates import choose_cluster
from dsmoe.benchmark.predict.rates.cluster import (
    NOT_MEASURED,
    RATES,
    Cluster,
    load_cluster,
    parse,
)
from dsmoe.benchmark.predict.rates.remarks import remarks
from dsmoe.benchmark.predict.time import predict

WHOLE, PRODUCTS, ATTENTION = 40.0, 15.0, 5.0


def layers(width: int, tokens: int, scale: float = 1.0) -> list[dict[str, Any]]:
    what = {"kind": "layers", "processes": 1, "width": width, "tokens": tokens, "count": 4}
    what.update(heads=4, length=128, factor=8, vocabulary=320, experts=4)
    parts = {"whole": WHOLE, "products": PRODUCTS, "attention": ATTENTION}
    return [{**what, "name": name, "ms": ms * scale} for name, ms in parts.items()]


def cluster_of(*rows: dict[str, Any]) -> Cluster:
    product = {"kind": "product", "processes": 1, "shape": [1, 1, 1, 1], "ms": 1.0}
    gelu = {"kind": "pass", "processes": 1, "name": "gelu", "elements": 1000, "ms": 0.5}
    return dataclasses.replace(
        load_cluster("h200-400g"), device="cpu", rows=(product, gelu, *rows), gpus_per_host=2
    )


def sizes(processes: int = 1) -> Sizes:
    return sizes_of(find_case("smoke", processes))


def test_the_layers_that_were_measured_take_what_was_measured() -> None:
    """By construction: what is not of products and attention is stretched to the rest."""
    rows = layers(64, 512)
    prices = Prices(cluster_of(*rows), "fp32", 1, sizes(), False)
    works = stack_of(rows[0])
    by_part = dict.fromkeys(("products", "attention"), 0.0)
    rest = 0.0
    for work in works:
        known = prices.rows.seconds(work)  # type: ignore[union-attr]
        if work.part in by_part:
            by_part[work.part] += prices.device(work, False)
        else:
            rest += known or 0.0
    assert by_part["products"] == pytest.approx(PRODUCTS / 1000)
    assert by_part["attention"] == pytest.approx(ATTENTION / 1000)
    half = [dataclasses.replace(work, launches=work.launches / 2) for work in works]
    rest += prices.host(half, True, False) + prices.host(half, False, False)
    assert rest == pytest.approx((WHOLE - PRODUCTS - ATTENTION) / 1000)


def test_the_layers_of_the_nearest_size_count() -> None:
    near, far = layers(64, 512), layers(128, 2048, scale=100.0)
    one = CpuRows(cluster_of(*near), 1, sizes())
    both = CpuRows(cluster_of(*far, *near), 1, sizes())
    assert both.rates == one.rates and both.slower == one.slower
    wide = dataclasses.replace(sizes(), T=2048, H=128)
    assert CpuRows(cluster_of(*far, *near), 1, wide).rates != one.rates


def test_a_file_without_layers_has_its_single_operations() -> None:
    """One of an earlier version, where the layers failed, or whose process was ended."""
    whole, *_ = layers(64, 512)
    for left in ([], [{**whole, "error": "no"}], [whole]):
        rows = CpuRows(cluster_of(*left), 1, sizes())
        assert rows.rates == {} and rows.slower == 1.0


def test_messages_take_what_their_collective_took() -> None:
    def row(name: str, size: int, ms: float) -> dict[str, Any]:
        return {
            "kind": "collective",
            "processes": 2,
            "name": name,
            "group": 2,
            "bytes": size,
            "ms": ms,
        }

    rows = CpuRows(
        cluster_of(
            row("all-to-all-in-step", 1000, 2.0),
            row("all-to-all-in-step", 3000, 4.0),
            row("all-reduce", 1000, 1.0),
            row("all-reduce", 3000, 3.0),
        ),
        2,
        sizes(2),
    )
    # of 2,000 bytes handed over half go to the other process; 10 calls
    assert rows.message(Sent(inside=1e4, calls=10), EXCHANGE) == pytest.approx(10 * 3.0e-3)
    # less than the smallest takes as long; more goes on along the line
    assert rows.message(Sent(inside=1.0, calls=1), EXCHANGE) == pytest.approx(2.0e-3)
    assert rows.message(Sent(inside=2500.0, calls=1), EXCHANGE) == pytest.approx(6.0e-3)
    # an all-reduce is counted as two calls, each of which moves the whole once
    assert rows.message(Sent(inside=2e3, calls=2), REDUCTIONS["all"]) == pytest.approx(2.0e-3)
    assert rows.message(Sent(inside=1e3, calls=1), ("broadcast", 1)) is None
    assert rows.message(Sent(), EXCHANGE) is None


@pytest.mark.parametrize(
    "rows",
    [
        [{k: v for k, v in row.items() if k != "tokens"} for row in layers(64, 512)],
        [{**row, "experts": 0} for row in layers(64, 512)],
    ],
)
def test_damaged_rates_cost_a_run_its_prediction_alone(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row of a run is written after it: a traceback there would lose what was measured."""
    rates = {name: {"value": 1.0} for name in RATES}
    product = {"kind": "product", "processes": 1, "shape": [1, 1, 1, 1], "ms": 1.0}
    values = {"schema": 1, "device": "cpu", "gpu": "", "gpus_per_host": 1, "memory_bytes": 1}
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({**values, "rates": rates, "rows": rows and [product, *rows]}))
    monkeypatch.setattr(choose_cluster, "calibrated_file", lambda: file)
    machine = SimpleNamespace(device="cpu", hardware={})
    assert choose_cluster.prediction_here(find_case("smoke", 1), 1, machine) == {}
    [line] = capsys.readouterr().err.splitlines()
    assert str(file) in line and "make it again" in line


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "rows is a NoneType, expected a list"),
        ([{"ms": 1.0}], "row 1 has no kind"),
        ([{"kind": "pass", "processes": 1, "ms": -1.0}], "row 1: ms is -1.0"),
        ([{"kind": "pass", "processes": 1, "ms": math.nan}], "row 1: ms is nan"),
        ([{"kind": "pass", "processes": "1", "ms": 1.0}], "row 1: processes is '1'"),
        ([{"kind": "product", "ms": 1.0}], "row 1, of kind product: processes is None"),
        ([{"kind": "pass", "processes": 1, "elements": 0, "ms": 1.0}], "elements is 0"),
        ([{"kind": "pass", "processes": 1, "elements": 9, "ms": 1.0}], "row 1.* has no name"),
        ([{"kind": "collective", "bytes": 8, "ms": 1.0}], "kind collective: group is None"),
        ([{"kind": "collective", "name": "x", "group": 1, "bytes": 8, "ms": 1.0}], "a group of 1"),
        ([{"kind": "layers", "processes": 1, "tokens": 64}], "of kind layers: width is None"),
    ],
)
def test_rows_that_were_edited_are_refused_in_one_line(rows: Any, words: str) -> None:
    rates = {name: {"value": 1.0} for name in RATES}
    values = {"schema": 1, "device": "cpu", "gpus_per_host": 1, "memory_bytes": 1, "rates": rates}
    with pytest.raises(ValueError, match=words):
        parse({**values, "rows": rows})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus_per_host": True}, "gpus_per_host is True"),
        ({"duplex": "no"}, "duplex is 'no', expected true or false"),
        ({"rates": {name: {"value": math.inf} for name in RATES}}, "is inf, expected a number"),
    ],
)
def test_values_that_were_edited_are_refused_in_one_line(changes: Any, words: str) -> None:
    rates = {name: {"value": 1.0} for name in RATES}
    values = {"schema": 1, "device": "cpu", "gpus_per_host": 1, "memory_bytes": 1, "rates": rates}
    assert parse(values).duplex
    with pytest.raises(ValueError, match=words):
        parse({**values, **changes})


@pytest.mark.parametrize("kind", ["product", "pass", "layers", "collective"])
def test_a_kind_of_rows_that_is_gone_is_said(kind: str) -> None:
    """The time is then from the rates alone, and no error; rows of one size count once."""
    messages = [
        {"kind": "collective", "name": "reduce", "group": 2, "bytes": size, "ms": 1.0}
        for size in (1000, 1000, 2000)
    ]
    whole = cluster_of(*layers(64, 512), *messages)
    assert remarks(whole, "cpu", 2, 1) == []
    cut = dataclasses.replace(whole, rows=tuple(r for r in whole.rows if r["kind"] != kind))
    [said] = remarks(cut, "cpu", 2, 1)
    assert f"no rows of {kind}" in said and "dsmoe calibrate" in said
    failed = [{**row, "error": "left out"} for row in whole.rows]
    [said] = remarks(dataclasses.replace(whole, rows=(*whole.rows, *failed)), "cpu", 2, 1)
    assert said.startswith(f"{len(failed)} of {2 * len(failed)} measurements of the file failed")
    for cluster in (whole, cut):
        assert 0 < predict(find_case("smoke", 2), cluster).seconds < math.inf


def test_rates_of_another_device_and_stand_ins_are_said() -> None:
    gpus = load_cluster("h200-400g")
    assert remarks(gpus, "cuda", 16, 2) == []
    [other] = remarks(gpus, "cpu", 1, 1)
    assert "runs on a CPU, and the rates are those of GPUs" in other
    sources = {**gpus.sources, "launch": NOT_MEASURED, "between": NOT_MEASURED}
    here = dataclasses.replace(gpus, sources=sources)
    for hosts, names in ((1, "stand-ins: launch;"), (2, "stand-ins: launch, between;")):
        [said] = remarks(here, "cuda", 8, hosts)
        assert names in said
