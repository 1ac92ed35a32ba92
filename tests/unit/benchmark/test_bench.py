"""``dsmoe bench``: its mistakes, and the table that it makes of records."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.commands import dsmoe
from support.records import failure, record

from dsmoe.benchmark.results import store
from dsmoe.benchmark.timing import speed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--steps 0", "'0' is not a whole number from 1"),
        ("--at-least 0", "'0' is not a number above 0"),
        ("--nonsense", "--help"),
    ],
)
def test_mistakes_are_one_line(arguments: str, words: str, capsys) -> None:
    assert dsmoe("bench", *arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_what_deepspeed_prints_of_its_partitions_is_not_shown(monkeypatch, capfd) -> None:
    def initialize(**given):
        print("Rank: 0 partition count [1, 1]")
        return given["model"], None, None, None

    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(initialize=initialize))
    assert speed.engine_of("model", [], {}) == "model"
    assert capfd.readouterr() == ("", "")


def test_the_table_says_what_was_run_and_what_failed(tmp_path: Path, capsys) -> None:
    joules = {"energy_joules": 1536.0, "joules_per_token": 0.25}
    for run in (record(**joules), failure("out of memory")):
        store.append(tmp_path, run)
    assert dsmoe("bench", "--table", tmp_path) == 0
    _, _, good, bad, empty, ran_on = capsys.readouterr().out.splitlines()
    assert re.match(r"\| smoke smoke, 2 process, \d+ x \d+, 2021-", good)
    assert good.split(" | ")[6] == "0.25" and good.count("|") == bad.count("|") == 10
    assert "out of memory" in bad
    assert not empty
    assert ran_on == "on cpu, python 3"  # the records's machine and versions


def test_the_table_tells_the_runs_of_a_case_apart(tmp_path: Path, capsys) -> None:
    """By any setting, kernels among them; the time where none differs; nothing where the case
    does."""
    runs = [
        replace(record(), case={**record().case, "attention": "written", "remat": True}),
        replace(record(), kernels={"products": "cublaslt"}),
        record(),
        replace(record(), time_stamp=1634066611.5),
        record("smoke", 1),
    ]
    for run in runs:
        store.append(tmp_path, run)
    assert dsmoe("bench", "--table", tmp_path) == 0
    rows = capsys.readouterr().out.splitlines()[2:7]
    case, *other = (row.split(" | ")[0] for row in rows)
    assert case.endswith("4, remat, attention written")
    assert other[0].endswith("4, no remat, attention fused, products cublaslt")
    assert other[1].endswith("4, no remat, attention fused, 2021-10-12 19:23:30 UTC")
    assert other[2].endswith(" 19:23:31 UTC")
    assert other[3] == "| smoke smoke, 1 process, 4 x 4"


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert dsmoe("bench", "--table", tmp_path / "file") == 10
    assert f"{tmp_path}/file: is a file; expected a folder" in capsys.readouterr().err


def test_a_folder_without_records_is_one_line(tmp_path: Path, capsys) -> None:
    assert dsmoe("bench", "--table", tmp_path) == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/results_e2e.jsonl: ")
