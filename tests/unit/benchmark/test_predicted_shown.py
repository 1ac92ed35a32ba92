"""Predicted against measured in a record, its table and its page; the predicted figure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.records import record as ok_record

from dsmoe import cli
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.plan import estimate
from dsmoe.benchmark.plan.estimate import SENT, plan_lines
from dsmoe.benchmark.predict.rates.cluster import FOLDER
from dsmoe.benchmark.results.comparison import load_reference
from dsmoe.benchmark.results.page import page
from dsmoe.benchmark.results.predicted import CURVES, load_alpa
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.terminal import report_lines
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common.errors import ResultsError

PARTS = {"products": {"exposed": 0.75, "hidden": 0.0}, "reduction": {"exposed": 0, "hidden": 0.5}}


def predicted(seconds: float) -> RunRecord:
    record = ok_record()
    assert record.median_seconds is not None
    found = {"seconds": seconds * record.median_seconds, "cluster": "box", "parts": PARTS}
    return dataclasses.replace(record, predicted=found)


def test_the_table_and_the_page_show_the_error() -> None:
    record = predicted(1.25)
    words = dict(report_lines(record))["predicted seconds"]
    assert words.endswith("at the rates of box, +25.0 % against the median")
    html = page([record, ok_record()], "results")
    assert f'<td class="n">{record.predicted["seconds"]:.4g}</td>' in html
    assert "0.75 s, 0 s hidden" in html
    assert "predicted seconds" not in dict(report_lines(ok_record()))


def test_a_record_keeps_its_prediction_and_refuses_a_wrong_one() -> None:
    record = predicted(0.5)
    assert RunRecord.from_json(record.to_json()) == record
    with pytest.raises(ResultsError, match="predicted: seconds is 'soon'"):
        dataclasses.replace(record, predicted={"seconds": "soon"})


def test_the_figure_has_every_published_point_and_a_line_for_each_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert cli.main(["plot", "--predicted", "--output", str(tmp_path / "scaling")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert max(len(line) for line in out if not line.startswith("wrote")) <= 80
    rows = {line.split()[0]: line for line in out[1:8]}
    assert set(rows) == {str(gpus) for gpus in load_reference().tflops}
    assert "45.4" in rows["16"]
    assert "no memory" in rows["64"]
    assert sorted(load_alpa()) == [16, 32, 64]
    assert len({style["linestyle"] + style["color"] for *_, style in CURVES}) == len(CURVES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plot"], "found no RESULTS"),
        (["plot", "results", "--cluster", "p3.16xlarge"], "--cluster is for --predicted"),
        (["plot", "results", "--cpu", "--predicted"], "figures of their own"),
        (["plot", "--predicted", "--cluster", "none"], "no such cluster"),
        (["plan", "1", "--explain"], "--explain is for --search"),
        (["plan", "1", "--cluster", "none"], "no such cluster"),
        (["plan", "1", "--suite", "smoke", "--search"], "--search is for GPUs"),
        (["plan", "8", "--suite", "published", "--search"], "published method"),
        (
            ["plan", "8", "--search", "--device-memory", "1e308", "--cluster", "h100-400g"],
            "at most 1,048",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "found"),
    [({"gpus_per_host": 4}, "hosts of 4"), ({"gpus_per_host": 6}, "hosts of 6"),
     ({"device": "cpu"}, "a CPU")],
)  # fmt: skip
def test_the_papers_figure_needs_whole_hosts(
    change: dict[str, object], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((FOLDER / "p3.16xlarge.json").read_text(encoding="utf-8"))
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({**values, **change}), encoding="utf-8")
    assert cli.main(["plot", "--predicted", "--cluster", str(path), "--output", "x"]) == 2
    assert f"found {found}; the paper's experts are" in capsys.readouterr().err


def test_a_search_in_which_nothing_fits_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--suite", "tuned", "--search", "--device-memory", "0.1", "--cluster", "h100-400g"]
    assert cli.main(["plan", "8", *words, "--json"]) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["search"] == [] and said["why"] in err and "fits into 0.1 GiB" in err


def test_a_plan_says_of_what_its_messages_are() -> None:
    """Words that fit the column."""
    assert all(len(words) < 31 for words in SENT.values())
    plan = {"peak": 1, "kinds": {}, "most": {}, "dispatch": 0, "local_parameters": 1}
    lines = plan_lines(find_case("tuned", 1), {**plan, "sent": {"reduce": 2**20}}, None, "cpu")
    assert "    reduce, gradients to owners             1.000" in lines


@pytest.mark.parametrize("search", [["--search", "--explain"], []])
def test_a_plan_has_80_columns(
    search: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the case, the best settings and the verdict are long."""
    counted = {"peak": 2**37, "kinds": {}, "most": {}, "dispatch": 0, "local_parameters": 1}
    monkeypatch.setattr(estimate, "estimate", lambda *_: {**counted, "sent": {}})
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say=print: None)
    command = ["plan", "64", "--model", "70B", "--cluster", "h100-400g", *search]
    assert cli.main(command) == (0 if search else 1)
    out = capsys.readouterr().out.splitlines()
    assert len(out) > 10
    assert max(map(len, out)) <= 80


def test_a_plan_as_json_says_meanwhile_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, before the seconds that it takes."""
    counted = {"peak": 1, "sent": {}}
    monkeypatch.setattr(estimate, "estimate", lambda *_: counted)
    monkeypatch.setattr(patched_deepspeed, "ensure", lambda path, say: say("== building"))
    assert cli.main(["plan", "1", "--suite", "tuned", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["peak"] == 1
    assert err.startswith("== building\n== counting the memory and traffic of tuned 380M")


def test_a_huge_number_of_gpus_a_host_ends_a_plan_soon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads((FOLDER / "h200-400g.json").read_text())
    file = tmp_path / "edited.json"
    file.write_text(json.dumps({**values, "gpus_per_host": 10**15}))
    command = ["plan", "8", "--model", "380M", "--search", "--json", "--cluster", str(file)]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["search"]
