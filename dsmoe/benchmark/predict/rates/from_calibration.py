"""From the rows of dsmoe calibrate to a cluster."""

from __future__ import annotations

import time
from typing import Any, Iterable, Mapping

from dsmoe.benchmark.predict.amounts.work import ATTENTION_SIZE
from dsmoe.benchmark.predict.rates.cluster import NOT_MEASURED, RATES, SCHEMA

Row = Mapping[str, Any]
#: Products of attention forward (two) and backward (five), over those forward.
PASSES = 3.5
#: What this machine cannot measure by itself: another host.
UNMEASURED = {"between": 25.0, "between_share": 0.9, "between_latency": 30.0}
SOURCES = {"pass_share": "as fitted on an H200 (docs/guide/scaling.md)"}
#: What stands for a rate that could not be measured, with a source that says so.
FALLBACK = {
    "product_16bit": 1.0,
    "product_fp32": 0.05,
    "attention": 0.3,
    "memory": 10.0,
    "pass_share": 0.78,
    "eager_share": 0.8,
    "launch": 8.0,
    "launch_backward": 16.0,
    "launch_graph": 2.0,
    "inside": 5.0,
    "inside_latency": 50.0,
}


def good(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows without an error that have these values."""
    return [
        row
        for row in rows
        if "error" not in row and all(row.get(name) == value for name, value in wanted.items())
    ]


def cluster_of(machine: Any, processes: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file of a cluster (cluster.parse): rates of ``rows``, and the rows themselves."""
    import psutil

    found = {
        "product_16bit": _product(rows, ("bfloat16", "float16")),
        "product_fp32": _product(rows, ("float32",)),
        "attention": _attention(rows),
        "memory": _memory(rows),
        "eager_share": _eager_share(rows),
        "launch": _launch(rows, "eager"),
        "launch_backward": _launch(rows, "autograd"),
        "launch_graph": _launch(rows, "graph"),
        "inside": _inside(rows),
        "inside_latency": _latency(rows),
    }
    rates = {}
    for name, unit in RATES.items():
        value = found.get(name)
        source = "dsmoe calibrate"
        if value is None:
            value = UNMEASURED.get(name, FALLBACK.get(name))
            source = SOURCES.get(name, NOT_MEASURED)
        rates[name] = {"value": value, "unit": unit, "source": source}
    memory = machine.hardware.get("device_memory_bytes")
    return {
        "schema": SCHEMA,
        "name": machine.instance,
        "device": machine.device,
        "gpu": machine.hardware.get("device_name", ""),
        "gpus_per_host": processes,
        "memory_bytes": memory or int(psutil.virtual_memory().total) // processes,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": machine.versions,
        "rates": rates,
        "rows": rows,
    }


def _product(rows: list[dict[str, Any]], dtypes: tuple[str, ...]) -> float | None:
    """TFLOP/s: of the products without a pause, else the best of the large ones."""
    for dtype in dtypes:
        for row in good(rows, kind="sustained", dtype=dtype):
            _, m, k, n = row["shape"]
            return float(4 * m * k * n / row["ms"] / 1e9)
    rates = [
        2 * row["shape"][0] * row["shape"][1] * row["shape"][2] * row["shape"][3] / row["ms"] / 1e9
        for dtype in dtypes
        for row in good(rows, kind="product", dtype=dtype)
    ]
    return max(rates, default=None)


def _attention(rows: list[dict[str, Any]]) -> float | None:
    """TFLOP/s of fused causal attention without dropout, forward and backward, of the largest batch
    at heads of ATTENTION_SIZE (or the nearest), by half of all pairs of positions."""
    found = good(rows, kind="attention", name="forward-backward", dropout=0.0)
    best = max(
        found, key=lambda row: (-abs(row["size"] - ATTENTION_SIZE), row["batch"]), default=None
    )
    if best is None:
        return None
    pairs = best["batch"] * best["heads"] * best["length"] ** 2 / 2
    rate = PASSES * 4 * pairs * best["size"] / best["ms"] / 1e9
    return float(rate * (ATTENTION_SIZE / best["size"]) ** 0.5)


def _memory(rows: list[dict[str, Any]]) -> float | None:
    """GB/s read and written: the largest addition in place of fp32 numbers (12 bytes each)."""
    found = good(rows, kind="optimizer", name="add-in-place")
    largest = max(found, key=lambda row: row["elements"], default=None)
    return None if largest is None else float(12 * largest["elements"] / largest["ms"] / 1e6)


def _eager_share(rows: list[dict[str, Any]]) -> float | None:
    """Of the memory rate, what one operation after another reaches: softmax and its gradient."""
    memory = _memory(rows)
    moved = seconds = 0.0
    for name, size in (("softmax", 2), ("softmax-backward", 3)):
        for row in good(rows, kind="pass", name=name):
            width = 4 if row["dtype"] == "float32" else 2
            moved += size * width * row["elements"]
            seconds += row["ms"] / 1000
    return moved / seconds / memory / 1e9 if memory and seconds else None


def _launch(rows: list[dict[str, Any]], name: str) -> float | None:
    """Microseconds an operation; autograd's row has a forward and a backward operation."""
    found = good(rows, kind="launch", name=name)
    if not found:
        return None
    each = float(found[0]["ms"] * 1000 / found[0]["operations"])
    if name == "autograd":
        eager = _launch(rows, "eager")
        return max(each - (eager or 0.0), 0.1)
    return each


def _inside(rows: list[dict[str, Any]]) -> float | None:
    """GB/s that a process sends to others in the largest all-to-all of the largest group."""
    found = good(rows, kind="collective", name="all-to-all")
    largest = max(found, key=lambda row: (row["group"], row["bytes"]), default=None)
    if largest is None:
        return None
    share = (largest["group"] - 1) / largest["group"]
    return float(largest["bytes"] * share / largest["ms"] / 1e6)


def _latency(rows: list[dict[str, Any]]) -> float | None:
    """Microseconds of the smallest all-reduce of two processes."""
    found = good(rows, kind="collective", name="all-reduce", group=2)
    smallest = min(found, key=lambda row: row["bytes"], default=None)
    return None if smallest is None else float(smallest["ms"] * 1000)
