"""A results folder as one HTML page, made from report.html.

The page has everything in it: no script, no outside resource, nothing to load.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.results.charts import curves, load_map
from dsmoe.benchmark.results.comparison import records_file
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.store import some_records
from dsmoe.benchmark.results.terminal import report_lines
from dsmoe.benchmark.results.texts import difference, text_names
from dsmoe.common.errors import ResultsError
from dsmoe.common.files import write_output

TEMPLATE = Path(__file__).with_name("report.html")
BESIDE = 8  # so many runs stand beside one another, the newest


def page(records: Sequence[RunRecord], source: str) -> str:
    """The whole HTML document for ``records``, newest first; every value in it is escaped."""
    from jinja2 import Environment, StrictUndefined

    runs: list[dict[str, Any]] = [
        {
            "number": number,
            "record": record,
            "text": text,
            "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.time_stamp)),
            "lines": dict(report_lines(record)),
            "load": load_map(record.expert_load, f"load {number}")
            if any(record.expert_load)
            else "",
            "folded": folded(record),
        }
        for number, (record, text) in enumerate(zip(records, text_names(records)), 1)
    ]
    runs.sort(key=lambda run: -run["record"].time_stamp)
    beside = runs[:BESIDE]
    charts = overlaid(beside)
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return made.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        source=source,
        runs=runs,
        beside=beside,
        differ=settings_that_differ([run["record"] for run in beside]),
        note=difference([run["text"] for run in runs]),
        texts={run["text"]: run["record"].data for run in runs},
        charts=charts,
        energy=any(record.joules_per_token for record in records),
        good=sum(record.status == "ok" for record in records),
    )


def overlaid(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(title, svg): the curves of loss, those of each text apart, and of iteration times."""
    charts = []
    texts = sorted({run["text"] for run in runs})
    named = [(f"run {run['number']}", style, run) for style, run in enumerate(runs)]
    for text in texts:
        title = "Training loss" + (f", text {text}" if len(texts) > 1 else "")
        series = [
            (label, style, 1, run["record"].losses)
            for label, style, run in named
            if run["text"] == text and any(v is not None for v in run["record"].losses)
        ]
        if series:
            charts.append((title, curves(series, "nats a token", title)))
    # Without the warm-up: the first iteration is often a hundred times as long.
    times = [
        (label, style, len(run["record"].warmup_seconds) + 1, run["record"].step_seconds)
        for label, style, run in named
        if run["record"].step_seconds
    ]
    if times:
        charts.append(("Measured iterations", curves(times, "seconds", "times")))
    return charts


def settings_that_differ(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each record) where the values are not all the same."""
    flats = []
    for record in records:
        machine = {"instance": record.instance, **record.hardware, **record.versions}
        flats.append({**dict(flat(record.case)), **dict(flat(machine))})
    names = dict.fromkeys(name for one in flats for name in one)
    rows = [(name, [one.get(name, "") for one in flats]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1]


def folded(record: RunRecord) -> dict[str, list[tuple[str, str]]]:
    """What a reader rarely asks for: (name, value) pairs below a title each."""
    text = {f"text {name}": record.data[name] for name in sorted(record.data)}
    warmup = ", ".join(f"{seconds:.3g} s" for seconds in record.warmup_seconds)
    machine = {**record.versions, "device": record.device, **record.hardware}
    trees = {"base tree": record.base_tree, "patched tree": record.result_tree}
    return {
        **({"Predicted time by part": predicted_parts(record)} if record.predicted else {}),
        "Environment": flat({**machine, "warm-up": warmup or "none", "folder": record.run_folder}),
        "Text and hashes": flat({**text, **trees}),
        "Case": flat(record.case),
        "DeepSpeed configuration": flat(record.deepspeed_config),
    }


def predicted_parts(record: RunRecord) -> list[tuple[str, str]]:
    """Where the predicted time goes; parts that take none, or hold no number, are left out."""
    parts = record.predicted.get("parts")
    found = []
    for name, one in parts.items() if isinstance(parts, dict) else ():
        pair = [one.get(key) for key in ("exposed", "hidden")] if isinstance(one, dict) else []
        if any(pair) and all(isinstance(seconds, float) for seconds in pair):
            found.append((str(name), f"{pair[0]:.4g} s, {pair[1]:.4g} s hidden"))
    return found


def flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as (dotted name, value) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{before}{name}.")
        else:
            pairs.append((f"{before}{name}", str(value)))
    return pairs


def write_page(results: Path, output: Path) -> None:
    """Write the page of ``results`` (a folder or a ``.jsonl`` file). Raises ResultsError."""
    text = page(some_records(records_file(results)), str(results))
    try:
        write_output(output, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ResultsError(
            f"{output}: the page was not written: {error.strerror}; name another file with --output"
        ) from error
