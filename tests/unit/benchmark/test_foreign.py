"""A result file holds whatever JSON can say; each such line is one message with its number."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import dsmoe
from support.records import record

from dsmoe.benchmark.results.page import BESIDE
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.rows import parse_row, read_rows, row_of
from dsmoe.benchmark.results.store import RECORDS, ROWS, append, read_records
from dsmoe.common.errors import ResultsError

GOOD = json.loads(record().to_json())
DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
BAD = [
    10**400,
    1e18,
    float("1e308"),
    "\ud800",
    DEEP,
    {},
    [],
    [[]],
    None,
    True,
    "",
    -1,
    0,
    {"a": 10**400},
]


#: Fields that the report draws.
DRAWN = ("losses", "step_seconds", "warmup_seconds", "expert_load", "data")


def changed(path: tuple[str, ...], value: Any) -> str:
    made = copy.deepcopy(GOOD)
    inner = made
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(made)


def paths(values: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [(*before, name) for name in values]
    for name, value in values.items():
        if isinstance(value, dict):
            found += paths(value, (*before, name))
    return found


@pytest.mark.parametrize("of", [7, pytest.param(2, marks=pytest.mark.long)])
def test_every_field_with_one_odd_value_of_some(
    of: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused with its number, or shown: by report and bench --table, which read every field.

    A field gets each ``of``-th value, and the next field others. The report draws the newest runs
    alone, so what is drawn is given to it few at a time.
    """
    file = tmp_path / RECORDS
    refused, drawn, shown = 0, [], []
    report = ("report", tmp_path, "--output", tmp_path / "page.html")
    for number, path in enumerate(paths(GOOD)):
        reported = False
        for value in BAD[number % of :: of]:
            line = changed(path, value)
            file.write_text(line + "\n")
            code = dsmoe("bench", "--table", tmp_path)
            assert code in (0, 10), (path, value)
            if code == 0:
                (drawn if path[0] in DRAWN else shown).append(line)
                continue
            if not reported:  # it reads a file as the table does: one value of each field
                assert dsmoe(*report) == 10, (path, value)
            said = capsys.readouterr().err.count(f"{file}:1: ")
            assert said == (1 if reported else 2), (path, value)
            refused, reported = refused + 1, True
    assert refused > 300 / of
    pages = [drawn[first : first + BESIDE] for first in range(0, len(drawn), BESIDE)]
    # without their maps of load, which take time
    plain = [json.dumps({**json.loads(line), "expert_load": []}) for line in shown]
    for some in [*pages, plain]:
        file.write_text("\n".join(some) + "\n")
        assert dsmoe(*report) == 0, some


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values | st.text(), st.sampled_from(paths(GOOD)))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_json_is_a_record_or_refused(value: Any, path: tuple[str, ...]) -> None:
    for line in (json.dumps(value), str(value).replace("\n", ""), changed(path, value)):
        try:
            read = RunRecord.from_json(line)
        except ResultsError as error:
            assert "\n" not in str(error)
        else:
            assert RunRecord.from_json(read.to_json()) == read and row_of(read).line()


@pytest.mark.parametrize("value", ["9" * 400, "1e400", "'x'", "{}", "[" * 900, "'\\d'", "9" * 4000])
def test_a_row_with_an_odd_value_is_refused(value: str) -> None:
    row = row_of(record()).line().split("\t")
    for place, text in ((6, "{'tflops': " + value + "}"), (7, value), (2, value)):
        made = row[:place] + [text] + row[place + 1 :]
        with pytest.raises(ResultsError):
            parse_row("\t".join(made))


@pytest.mark.parametrize(
    "last", ["{", "[" * 99999, "9" * 5000, changed(("time_stamp",), 10**400), "\x00"]
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_bad_last_record_does_not_stop_the_next_row(tmp_path: Path, last: str, end: str) -> None:
    append(tmp_path, record())
    with (tmp_path / RECORDS).open("a") as file:
        file.write(last + end)
    append(tmp_path, record())
    lines = (tmp_path / RECORDS).read_text().splitlines()
    assert RunRecord.from_json(lines[-1]).step_seconds == record().step_seconds
    assert len(read_rows(tmp_path / ROWS)) == 2
    if not end:
        assert len(read_records(tmp_path / RECORDS)) == 2


def test_a_name_that_is_no_text_is_written_and_read(tmp_path: Path) -> None:
    run = record()
    run.deepspeed_config["tensorboard"] = "/tmp/\udcff"
    append(tmp_path, run)
    [read] = read_records(tmp_path / RECORDS)
    assert read.deepspeed_config["tensorboard"] == "/tmp/?"


@pytest.mark.parametrize("command", ["report", "plot", "bench --table"])
def test_files_without_a_run_are_refused(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (RECORDS, ROWS):
        (tmp_path / name).touch()
    words = [*command.split(), tmp_path, "--output", tmp_path / "out"]
    assert dsmoe(*words) == 10
    out, err = capsys.readouterr()
    assert out == "" and "dsmoe run --output FOLDER" in " ".join(err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORDS, ROWS]
