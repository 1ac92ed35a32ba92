"""The figure never shows the reference as a measurement; the report is one page, well formed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import ROOT
from support.records import failure, record

from dsmoe import cli
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.results.charts import curves
from dsmoe.benchmark.results.comparison import compare, load_reference, table_lines
from dsmoe.benchmark.results.figure import (
    DSMOE_STYLE,
    PUBLISHED_STYLE,
    REFERENCE_STYLE,
    draw_comparison,
    draw_cpu,
)
from dsmoe.benchmark.results.page import page as page_of
from dsmoe.benchmark.results.page import settings_that_differ
from dsmoe.benchmark.results.record import measured
from dsmoe.benchmark.results.rows import read_rows, row_of
from dsmoe.benchmark.results.store import RECORDS, append, read_records

PUBLISHED = {1: 34.24, 2: 33.11, 4: 34.67, 8: 40.01, 16: 12.91, 32: 3.82}


def ran(suite: str, gpus: int, seconds: float):
    """A finished run on GPUs with iterations of so many seconds."""
    return record(suite, gpus, "cuda", **measured(find_case(suite, gpus), [seconds]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for gpus, seconds in ((1, 20.0), (1, 30.0), (8, 15.7), (16, 20.0)):
        append(tmp_path, ran("artifact", gpus, seconds))
    append(tmp_path, ran("published", 1, 40.0))
    append(tmp_path, failure("out of memory at iteration 1", "artifact", 4))
    append(tmp_path, failure("killed", "paper", 32))
    append(tmp_path, record())
    append(tmp_path, record(device="cuda"))
    return tmp_path


def test_every_bar_and_every_gap_is_what_the_rows_say(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_rgb

    reference = load_reference()
    points = compare(read_rows(folder / "results_e2e.tsv"), reference)
    fig = draw_comparison(points, reference)
    [ax] = fig.axes

    def bars(style: dict, hatch: str | None = None) -> dict[int, float]:
        colour = to_rgb(style["color"])
        found = [b for b in ax.patches if b.get_facecolor()[:3] == colour]
        if hatch != "any":
            found = [b for b in found if b.get_hatch() == hatch]
        # The bars of a point stand round its place.
        return {points[round(b.get_x() + b.get_width() / 2)].gpus: b.get_height() for b in found}

    def figure(suite: str, gpus: int, seconds: float) -> float:
        return ran(suite, gpus, seconds).tflops["artifact"]

    assert bars(REFERENCE_STYLE, "any") == PUBLISHED
    ours = {1: figure("artifact", 1, 20.0), 8: figure("artifact", 8, 15.7)}
    assert bars(DSMOE_STYLE) == pytest.approx(ours)
    assert bars(PUBLISHED_STYLE, "any") == pytest.approx({1: figure("published", 1, 40.0)})
    # 16 GPUs: the artifact's script trains 4.5B, the figure 10B; drawn apart.
    assert list(bars(DSMOE_STYLE, "...")) == [16]
    words = [text.get_text() for text in ax.texts]
    assert words.count("dsmoe: not measured") == 2 and "dsmoe: out of memory" in words
    assert "dsmoe: failed" in words and "reference: out of memory" in words
    assert words.count("published method: not measured") == len(points) - 1
    assert len(ax.patches) == len(PUBLISHED) + 3 + 1
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(names) == 4 and names[0].startswith("reference: ")


def test_the_table_has_a_word_for_every_gap(folder: Path) -> None:
    reference = load_reference()
    points = compare(read_rows(folder / "results_e2e.tsv"), reference)
    head, *rows, note = table_lines(points, reference)
    assert head.split()[:2] == ["GPUs", "model"]
    lines = {line.split()[0]: line for line in rows}
    assert re.fullmatch(r"1 +380M +34.24 +55.34 +110.68 +2.00", lines["1"])
    assert re.fullmatch(r"2 +690M +33.11 +not measured +not measured +-", lines["2"])
    assert re.fullmatch(r"16 +10B +12.91 +not measured +\S+ \(4.5B\) +-", lines["16"])
    assert re.fullmatch(r"64 +70B +out of memory +not measured +not measured +-", lines["64"])
    assert "measured on p3.16" in note
    nothing = compare([row_of(record()), row_of(record(device="cuda"))], reference)
    assert all(m.tflops is None and m.runs == 0 for p in nothing for m in (p.published, p.dsmoe))


def test_the_commands_write_whole_files_or_say_why(folder: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert cli.main(["plot", str(folder), "--output", str(folder / "fig.png")]) == 0
    said = capsys.readouterr().out
    assert "1 CPU run(s) are not drawn" in said and "ratio" in said
    assert (folder / "fig.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "fig.pdf").read_bytes().startswith(b"%PDF")
    assert cli.main(["plot", str(folder), "--cpu", "--output", str(folder / "cpu")]) == 0
    assert (folder / "cpu.pdf").stat().st_size and not list(folder.glob(".fig*"))
    for command in ("plot", "report"):
        assert cli.main([command, str(folder / "none.jsonl")]) == 10
        assert capsys.readouterr().err.startswith("error: ")
    assert cli.main(["plot", str(folder), "--output", "/proc/none/fig"]) == 10
    assert "the figure was not written" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("variable", ["MPLBACKEND=x", "SOURCE_DATE_EPOCH=NAME.patch"])
def test_a_variable_that_matplotlib_ends_at_changes_no_figure(folder: Path, variable: str) -> None:
    pytest.importorskip("matplotlib")
    name, _, value = variable.partition("=")
    command = [sys.executable, "-m", "dsmoe", "report", folder, "--output", folder / "r.html"]
    env = {**os.environ, name: value, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (folder / "r.html").read_text(encoding="utf-8").count("<svg") > 2


class Page(HTMLParser):
    """Checks nesting; keeps attributes that could load something, texts and element counts."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.names |= set(values)
        self.loads += [v or "" for k, v in values.items() if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_is_one_page_that_loads_nothing(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    evil = "<script>alert(1)</script> & \"'"
    append(folder, failure(evil, "artifact", 1))
    text = {"content": evil, "tokenizer": evil}
    append(folder, record(hardware={evil: evil}, data=text, time_stamp=2e9))
    records = read_records(folder / RECORDS)
    assert cli.main(["report", str(folder), "--output", str(folder / "r.html")]) == 0
    text = (folder / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and evil in page.texts
    assert all(re.match("#(run-)?[0-9a-zA-Z]+$", link) for link in page.loads)
    assert "url(http" not in text and "@import" not in text and "default-src 'none'" in text
    # losses of the newest runs by text, their times, and a map of load for each run that has one
    assert page.tags.count("svg") == 2 + 1 + sum(any(r.expert_load) for r in records)
    assert "<th>" not in text and {"scope"} <= page.names
    assert re.search(r'role="note">.*Different texts.*A, unknown', text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_same_text_is_no_note_and_settings_that_differ_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = {"content": "c" * 64, "tokenizer": "bytes"}
    for gpus, torch in ((1, "2.8"), (2, "2.13")):
        append(tmp_path, record(gpus=gpus, data=text, versions={"python": "3", "torch": torch}))
    records = read_records(tmp_path / RECORDS)
    assert "Different texts" not in page_of(records, "here")
    differ = dict(settings_that_differ(records))
    assert differ["torch"] == ["2.8", "2.13"] and differ["parallel.processes"] == ["1", "2"]
    assert "python" not in differ


def test_a_value_that_is_not_finite_is_a_gap_in_the_curve() -> None:
    pytest.importorskip("matplotlib")
    drawn = curves([("run 1", 0, 1, [5.0, None, 4.5, 4.25])], "nats", "loss")
    [line] = re.findall(r'd="([^"]*)"[^>]*stroke: #2f7fc1[^>]*stroke-linecap: square', drawn)[:1]
    assert line.count("M") == 2 and line.count("L") == 1
    assert "iteration" in drawn and "nats" in drawn and "run 1" in drawn


def test_cpu_runs_on_different_text_have_bars_of_their_own() -> None:
    pytest.importorskip("matplotlib")
    runs = [record(data={"content": c, "tokenizer": "bytes"}) for c in "aab"]
    [ax] = draw_cpu(runs).axes
    assert len(ax.patches) == 2 and "texts A, B" in ax.get_xlabel()
    assert [tick.get_text().split("\n")[-1] for tick in ax.get_xticklabels()] == [
        "text A",
        "text B",
    ]
    [ax] = draw_cpu(runs[:2]).axes
    assert len(ax.patches) == 1 and not ax.get_xlabel()
