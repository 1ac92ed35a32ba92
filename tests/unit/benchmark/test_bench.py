"""``dsmoe bench``: its mistakes, and the table that it makes of records."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import dsmoe
from support.records import failure, record

from dsmoe.benchmark.results import store


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


def test_the_table_says_what_was_run_and_what_failed(tmp_path: Path, capsys) -> None:
    joules = {"energy_joules": 1536.0, "joules_per_token": 0.25}
    for run in (record(**joules), failure("out of memory")):
        store.append(tmp_path, run)
    assert dsmoe("bench", "--table", tmp_path) == 0
    _, _, good, bad, empty, ran_on = capsys.readouterr().out.splitlines()
    assert re.match(r"\| smoke smoke, 2 process, \d+ x \d+ \|", good)
    assert good.split(" | ")[6] == "0.25" and good.count("|") == bad.count("|") == 10
    assert "out of memory" in bad
    assert not empty
    assert ran_on == "on cpu, python 3"  # the records's machine and versions


def test_the_table_tells_the_runs_of_a_case_apart(tmp_path: Path, capsys) -> None:
    for precision in ("fp32", "bf16"):
        store.append(tmp_path, replace(record(), case={**record().case, "precision": precision}))
    assert dsmoe("bench", "--table", tmp_path) == 0
    _, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert ", precision fp32 |" in first and ", precision bf16 |" in second


def test_a_folder_without_records_is_one_line(tmp_path: Path, capsys) -> None:
    assert dsmoe("bench", "--table", tmp_path) == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/results_e2e.jsonl: ")
