"""A results folder as one HTML page.

The page has everything in it: no script, no outside resource, nothing to load.
"""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.results.charts import line_chart, load_chart
from dsmoe.benchmark.results.comparison import records_file
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.store import some_records
from dsmoe.benchmark.results.terminal import report_lines
from dsmoe.common.errors import ResultsError
from dsmoe.common.files import write_output

STYLE = """
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--soft:#767676;--mark:#1b6ca8;
--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--paper:#161616;--soft:#9a9a9a;--mark:#6fb4e8;
--bad:#ff8a80}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:68rem;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #8884;
vertical-align:top}
.number{text-align:right}.bad{color:var(--bad)}.charts{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 20rem}figcaption{font-weight:600}svg{width:100%;height:auto}
.line{fill:none;stroke:var(--mark);stroke-width:1.6}.dot,.cell{fill:var(--mark)}
.cell{stroke:#8888}.warm{fill:var(--soft)}.grid{stroke:#8884}.axis{font-size:10px;fill:var(--soft)}
.end{text-anchor:end}code{overflow-wrap:anywhere}section{margin-top:2.5rem}
"""
COLUMNS = (
    *("run", "case", "tokens/s", "s/iteration", "predicted", "last loss", "held-out", "ended"),
)


def page(records: Sequence[RunRecord], source: str) -> str:
    """The whole HTML document for ``records``, newest first."""
    newest = sorted(enumerate(records, 1), key=lambda pair: -pair[1].time_stamp)
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join(_row(number, record) for number, record in newest)
    sections = "".join(_section(number, record) for number, record in newest)
    good = sum(record.status == "ok" for record in records)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Benchmark runs: {escape(source)}</title><style>{STYLE}</style></head><body>"
        f"<h1>Benchmark runs</h1><p>{len(records)} runs in <code>{escape(source)}</code>, {good} "
        f"finished.</p><div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        f"</table></div>{sections}</body></html>\n"
    )


def _row(number: int, record: RunRecord) -> str:
    lines = dict(report_lines(record))
    cells = [
        f'<a href="#run-{number}">{number}</a>',
        escape(lines["case"]),
        escape(lines.get("tokens/s", "")),
        f"{record.median_seconds:.4g}" if record.median_seconds else "",
        f"{record.predicted['seconds']:.4g}" if record.predicted else "",
        escape(lines.get("last loss", "")),
        escape(lines.get("held-out loss", "")),
        "ok" if record.status == "ok" else f"<span class=bad>{escape(record.reason or '')}</span>",
    ]
    right = " class=number"
    kinds = ["", "", *[right] * 5, ""]
    return "<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds, cells)) + "</tr>"


def _section(number: int, record: RunRecord) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.time_stamp))
    return (
        f'<section id="run-{number}"><h2>Run {number}: {escape(report_lines(record)[0][1])}</h2>'
        f"<p>{when}</p>{_table(report_lines(record)[1:])}"
        f"<div class=charts>{''.join(_charts(record))}</div>{_parts(record)}"
        f"<h3>Environment</h3>{_table(environment(record))}"
        f"<details><summary>Case</summary>{_table(flat(record.case))}</details>"
        f"<details><summary>DeepSpeed configuration</summary>"
        f"{_table(flat(record.deepspeed_config))}</details></section>"
    )


def _parts(record: RunRecord) -> str:
    """Where the predicted time goes."""
    parts = record.predicted.get("parts")
    if not isinstance(parts, dict):
        return ""
    rows = [
        (str(name), f"{one.get('exposed', 0):.4g} s, {one.get('hidden', 0):.4g} s hidden")
        for name, one in parts.items()
        if isinstance(one, dict) and (one.get("exposed") or one.get("hidden"))
    ]
    return f"<details><summary>Predicted time by part</summary>{_table(rows)}</details>"


def _charts(record: RunRecord) -> list[str]:
    charts = []
    warm = len(record.warmup_seconds)
    if record.losses:
        charts.append(
            line_chart(record.losses, "Training loss (grey: warm-up)", "nats", marked=warm)
        )
    if record.step_seconds:
        # Without the warm-up: the first iteration is often a hundred times as long.
        charts.append(line_chart(record.step_seconds, "Measured iterations", "s", first=warm + 1))
    if any(record.expert_load):
        charts.append(load_chart(record.expert_load, "Expert load: share of first choices"))
    return charts


def environment(record: RunRecord) -> list[tuple[str, str]]:
    """What the run ran on: (what, value)."""
    trees = {
        **{f"base tree {name}": tree for name, tree in record.base_tree.items()},
        **{f"patched tree {name}": tree for name, tree in record.result_tree.items()},
    }
    text = {f"text {name}": record.data[name] for name in sorted(record.data)}
    return [
        (name, str(value))
        for name, value in {
            **record.versions,
            "warm-up": ", ".join(f"{seconds:.3g} s" for seconds in record.warmup_seconds) or "none",
            "device": record.device,
            **record.hardware,
            **trees,
            **text,
            "folder": record.run_folder,
        }.items()
    ]


def flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as (dotted name, value) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{before}{name}.")
        else:
            pairs.append((f"{before}{name}", str(value)))
    return pairs


def _table(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>"
        for name, value in pairs
    )
    return f"<table><tbody>{rows}</tbody></table>"


def write_page(results: Path, output: Path) -> None:
    """Write the page of ``results`` (a folder or a ``.jsonl`` file). Raises ResultsError."""
    text = page(some_records(records_file(results)), str(results))
    try:
        write_output(output, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ResultsError(
            f"{output}: the page was not written: {error.strerror}; name another file with --output"
        ) from error
