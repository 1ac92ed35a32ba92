"""The records of a results folder as a table in Markdown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.store import RECORDS, some_records
from dsmoe.common.errors import ResultsError

#: Fields of a case that make no run another one, or that stand by themselves.
LEFT_OUT = ("parallel", "source", "reduce_reason", "warmup", "iterations")


def print_table(folder: Path) -> None:
    """One row for each record; then what they ran on: GPU, versions, and what a record says of
    kernels. Raises ResultsError."""
    if folder.is_file():
        raise ResultsError(f"{folder}: is a file; expected a folder of dsmoe run --output")
    records = some_records(folder / RECORDS)
    print(
        "| case | n | s, median | spread | tokens/s | useful TFLOPS a GPU | J a token | peak GiB "
        "| first step |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    ran_on: dict[str, None] = {}  # in the order of the rows
    for record, words in zip(records, _words(records)):
        if record.status != "ok" or record.median_seconds is None:
            print(f"| {words} | | {record.reason} | | | | | | |")
            continue
        hardware = record.hardware.get("device_name", record.instance)
        words_of = {"on": hardware, **record.versions, **record.kernels}
        ran_on[", ".join(f"{name} {value}" for name, value in words_of.items())] = None
        peak = (record.peak_memory_bytes or 0) / 2**30
        first, joules = record.first_step_seconds, record.joules_per_token
        print(
            f"| {words} | {len(record.step_seconds)} | {record.median_seconds:.3f} "
            f"| {record.spread:.1%} | {record.tokens_per_second:,.0f} "
            f"| {record.tflops['useful']:.3g} | {f'{joules:.3g}' if joules else ''} | {peak:.1f} "
            f"| {f'{first:.0f} s' if first else ''} |"
        )
    print("\n".join(["", *ran_on]))


def _words(records: Sequence[RunRecord]) -> list[str]:
    """The first cell of each row: the case, the settings in which its runs differ, and the time
    where they differ in none."""
    found = [_case(record) for record in records]
    alike: dict[str, list[dict[str, Any]]] = {}
    for words, record in zip(found, records):
        alike.setdefault(words, []).append(_settings(record))
    found = [
        words + _differences(_settings(record), alike[words])
        for words, record in zip(found, records)
    ]
    return [
        words if found.count(words) == 1 else f"{words}, {_when(record)}"
        for words, record in zip(found, records)
    ]


def _case(record: RunRecord) -> str:
    case: dict[str, Any] = record.case
    processes, count = case["parallel"]["processes"], case["micro_batches"]
    size = case["global_batch_size"] // (processes * count)
    unit = "GPU" if record.device == "cuda" else "process"
    return f"{case['suite']} {case['model']['name']}, {processes} {unit}, {count} x {size}"


def _settings(record: RunRecord) -> dict[str, Any]:
    case = {name: value for name, value in record.case.items() if name not in LEFT_OUT}
    found = {**case, **record.case["parallel"], **record.kernels}
    return {name.replace("_", " "): value for name, value in found.items()}


def _differences(own: dict[str, Any], group: Sequence[dict[str, Any]]) -> str:
    """``own`` settings in which not all of ``group`` agree."""
    words = ""
    for name, value in own.items():
        if len({repr(one.get(name)) for one in group}) > 1:
            off = value is None or value is False
            words += f", {'no ' if off else ''}{name}{'' if off or value is True else f' {value}'}"
    return words


def _when(record: RunRecord) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.time_stamp))
