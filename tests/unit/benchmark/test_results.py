"""Rows and records agree, survive kills, full disks and each other, and are never run as code."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT
from support.records import failure, record

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.results.page import page
from dsmoe.benchmark.results.record import RunRecord, energy, measured
from dsmoe.benchmark.results.rows import parse_row, read_rows, row_of
from dsmoe.benchmark.results.store import RECORDS, ROWS, append, check_agreement, read_records
from dsmoe.benchmark.results.terminal import print_report, report_lines
from dsmoe.benchmark.run.progress import Progress
from dsmoe.benchmark.timing import ladder
from dsmoe.common.errors import ResultsError


def drawn_by_the_artifact(path: Path) -> dict[tuple[str, int, str], float]:
    """What the artifact's plot takes from a file (osdi22_artifact/common.py, parse_tsv_file)."""
    best: dict[tuple[str, int, str], float] = {}
    for line in path.read_text().splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, hosts, devices, network, method, value, _ = text.split("\t")
        if name == "e2e":
            key = (network, int(hosts) * int(devices), method)
            best[key] = max(eval(value)["tflops"], best.get(key, float("-inf")))
    return best


def test_the_row_is_the_artifact_s_line() -> None:
    line = row_of(record("artifact", 8, "cuda")).line()
    names, value, stamp = line.rsplit("\t", 2)
    assert names == "e2e\tp3.16\t1\t8\tmoe\tdsmoe" and stamp == "1634066610.5"
    # 2.5 s is the median; the parameter count is in billions.
    tflops = record("artifact", 8, "cuda").tflops["artifact"]
    assert value == f"{{'tflops': {tflops!r}, 'parameter_count': 2.384144384}}"
    assert parse_row(line) == row_of(record("artifact", 8, "cuda"))


def test_the_artifact_s_plot_draws_paper_cases_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text("# MOE\n\n")
    slow = record("artifact", 8, "cuda", **measured(find_case("artifact", 8), [9.0]))
    fast = record("artifact", 8, "cuda")
    lost = failure("a 'quoted'\ttab\nand a line end", "artifact", 4)
    for run in (slow, fast, lost, record("artifact", 1, "cpu"), record(), record(device="cuda")):
        append(tmp_path, run)
    assert drawn_by_the_artifact(tmp_path / ROWS) == {
        ("moe", 8, "dsmoe"): fast.tflops["artifact"],
        ("moe", 4, "dsmoe"): -1,
    }
    assert [row.exp_name for row in read_rows(tmp_path / ROWS)][3:] == [
        "smoke-cpu",
        "smoke-cpu",
        "smoke-gpu",
    ]
    assert read_rows(tmp_path / ROWS)[2].value["reason"] == "a 'quoted' tab and a line end"
    assert check_agreement(tmp_path) == 6


def test_reads_the_rows_published_with_the_artifact(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text(
        "# MOE\n"
        "e2e\tp3.16\t4\t8\tmoe\tdeepspeed\t{'tflops': 3.82,  'param_count': 27}\t1634066833\n"
        "e2e\tp3.16\t1\t2\tmoe\tparax.intra_only\t{'param_count': 0.6857, 'peak_mem': 7.4275, "
        "'latencies': [19.6943, 19.676], 'tflops': 42.1687}\t1642241207\n"
    )
    rows = read_rows(tmp_path / ROWS)
    assert [(row.num_devices, row.value["tflops"]) for row in rows] == [(32, 3.82), (2, 42.1687)]


WRITER = """
import sys, pathlib
sys.path.insert(0, sys.argv[3])
from support.records import record
from dsmoe.benchmark.results.store import append
for i in range(8):
    append(pathlib.Path(sys.argv[1]), record(time_stamp=float(int(sys.argv[2]) * 100 + i)))
"""


def script(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments), str(ROOT / "tests")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(script(WRITER, tmp_path, number), env=environment()) for number in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    expected = {float(number * 100 + i) for number in range(4) for i in range(8)}
    stamps = [row.time_stamp for row in read_rows(tmp_path / ROWS)]
    assert len(stamps) == 32 and set(stamps) == expected
    assert [item.time_stamp for item in read_records(tmp_path / RECORDS)] == stamps
    assert check_agreement(tmp_path) == 32


@pytest.mark.parametrize(
    "value",
    [
        "{'tflops': __import__('os').system('touch planted')}",
        "__import__('pathlib').Path('planted').touch() or {'tflops': 1}",
        "{'tflops': [open('planted', 'w') for _ in (1,)]}",
        "(lambda: open('planted', 'w'))()",
        "f\"{open('planted', 'w')}\"",
        "{'tflops': 1e999}",
        "{'tflops': True}",
        "{'parameter_count': 1}",
        "{'tflops': 1, 'x': {'y': 1}}",
        "[1]",
        "",
        "-" * 3000 + "1",
        "{'tflops': " + "(" * 1500 + "1" + ")" * 1500 + "}",
        "{'tflops': 1, 'x': '" + "x" * 5000 + "'}",
    ],
)
def test_a_value_is_never_run(tmp_path: Path, value: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ROWS
    path.write_text(row_of(record()).line() + f"\ne2e\tx\t1\t1\tmoe\tdeepspeed\t{value}\t1\n")
    with pytest.raises(ResultsError) as caught:
        read_rows(path)
    assert f"{ROWS}:2: " in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("column", "text"),
    [(2, "0"), (2, "x"), (3, "-1"), (3, "1" * 30), (7, "nan"), (7, "soon"), (4, "moe\textra")],
)
def test_rows_that_are_not_rows_are_refused(tmp_path: Path, column: int, text: str) -> None:
    columns = row_of(record()).line().split("\t")
    columns[column] = text
    (tmp_path / ROWS).write_text("\n# comment\n" + "\t".join(columns) + "\n")
    with pytest.raises(ResultsError, match=f"{ROWS}:3: .*expected"):
        read_rows(tmp_path / ROWS)


def test_the_artifacts_own_row_for_8_gpus_is_read_as_8_devices(tmp_path: Path) -> None:
    value = "{'tflops': 3.2, 'parameter_count': 1.3}"
    (tmp_path / ROWS).write_text(f"e2e\tp3.16\t1\t0\tmoe\tdeepspeed\t{value}\t1634066610.5\n")
    said: list[str] = []
    [row] = read_rows(tmp_path / ROWS, said.append)
    assert row.num_devices == 8
    assert said == [
        f"{tmp_path / ROWS}:1: 0 devices a host, as the artifact's script writes for whole hosts; "
        "read as 8"
    ]


def test_torn_lines_are_set_aside_and_whole_rows_are_kept(tmp_path: Path) -> None:
    first, last, after = (record(time_stamp=stamp) for stamp in (1000.25, 2000.25, 3000.25))
    for run in (first, last):
        append(tmp_path, run)
    whole = {name: (tmp_path / name).read_bytes() for name in (ROWS, RECORDS)}
    start = {name: data[:-1].rfind(b"\n") + 1 for name, data in whole.items()}
    # A kill while the row is written: the record is whole. Every cut, line end included.
    for cut in range(start[ROWS], len(whole[ROWS])):
        (tmp_path / RECORDS).write_bytes(whole[RECORDS])
        (tmp_path / ROWS).write_bytes(whole[ROWS][:cut])
        append(tmp_path, after)
        assert [row.time_stamp for row in read_rows(tmp_path / ROWS)] == [1000.25, 2000.25, 3000.25]
        assert check_agreement(tmp_path) == 3
    # A kill while the record is written: its row was not begun.
    for cut in [*range(start[RECORDS], len(whole[RECORDS]), 97), len(whole[RECORDS]) - 1]:
        complete = cut == len(whole[RECORDS]) - 1
        (tmp_path / RECORDS).write_bytes(whole[RECORDS][:cut])
        (tmp_path / ROWS).write_bytes(whole[ROWS][: start[ROWS]])
        append(tmp_path, after)
        assert check_agreement(tmp_path) == 2 + complete
    assert (tmp_path / f"{RECORDS}.torn").exists() and (tmp_path / f"{ROWS}.torn").exists()


def test_a_last_row_without_a_line_end_is_kept(tmp_path: Path) -> None:
    for tail in (row_of(record(time_stamp=7.0)).line(), "# a note"):
        (tmp_path / ROWS).write_text(tail)
        append(tmp_path, record())
        assert (tmp_path / ROWS).read_text().startswith(tail + "\n")
        (tmp_path / RECORDS).unlink()


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[2])
from support.records import record
from dsmoe.benchmark.results import store as results
def kill(event, given):
    written = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)
    if written and str(given[0]).endswith(results.ROWS):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)  # it sees a file before it is opened
results.append(pathlib.Path(sys.argv[1]), record(time_stamp=5.0))
"""


def test_a_kill_between_record_and_row_is_completed_by_the_next_run(tmp_path: Path) -> None:
    done = subprocess.run(script(KILLED, tmp_path), env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / RECORDS).exists() and not (tmp_path / ROWS).exists()
    append(tmp_path, record())
    assert [row.time_stamp for row in read_rows(tmp_path / ROWS)] == [5.0, 1634066610.5]
    assert check_agreement(tmp_path) == 2


FULL = """
import pathlib, resource, signal, sys
sys.path.insert(0, sys.argv[2])
from support.records import record
from dsmoe.common.errors import ResultsError
from dsmoe.benchmark.run.progress import Progress
from dsmoe.benchmark.results.store import append, RECORDS
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = (folder / RECORDS).stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    append(folder, record())
except ResultsError as error:
    print(error)
"""


def test_a_record_that_does_not_fit_leaves_both_files_as_they_were(tmp_path: Path) -> None:
    append(tmp_path, record())
    before = {name: (tmp_path / name).read_bytes() for name in (ROWS, RECORDS)}
    done = subprocess.run(
        script(FULL, tmp_path), env=environment(), check=True, stdout=subprocess.PIPE, text=True
    )
    assert f"{RECORDS}: the result was not written: File too large" in done.stdout
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_full_disk_takes_the_record_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = os.write, []

    def full(handle: int, data: bytes) -> int:
        if data.startswith(b"{"):
            return write(handle, data)
        calls.append(data)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dsmoe.benchmark.results.store.os.write", full)
    with pytest.raises(ResultsError, match=r"results_e2e.tsv: .*No space left.*free some space"):
        append(tmp_path, record())
    assert calls and (tmp_path / RECORDS).read_bytes() == b""


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResultsError, match="the result was not written"):
            append(folder, record())
    with pytest.raises(ResultsError, match="cannot be read: No such file"):
        read_rows(tmp_path / "none.tsv")
    (tmp_path / ROWS).write_bytes(b"e2e\t\xff\n")
    with pytest.raises(ResultsError, match="not UTF-8 text at byte 4"):
        read_rows(tmp_path / ROWS)


def test_records_come_back_as_they_were() -> None:
    for run in (record(), record("paper", 16, "cuda"), failure()):
        line = run.to_json()
        assert RunRecord.from_json(line) == run and "\n" not in line
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    run = record()
    assert (run.median_seconds, run.spread, run.losses) == (2.5, 0.8, [5.0, None, 4.25])
    assert run.tokens_per_second == 16 * 128 / 2.5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp_name": "e2e"}, "like a case of the paper"),
        ({"model_name": "moe"}, "like a case of the paper"),
        ({"instance": "p3.16"}, "like a case of the paper"),
        ({"device": "cuda", "exp_name": "e2e"}, "suite 'smoke' is named e2e"),
        ({"num_hosts": 2}, "2 hosts with 2 devices are 4, but the case has 2"),
        ({"num_devices_per_host": 0}, "num_devices_per_host is 0"),
        ({"exp_name": "a\tb"}, "expected a plain name"),
        ({"exp_name": "#a"}, "expected a plain name"),
        ({"step_seconds": [1.0]}, "figures that"),
        ({"median_seconds": None}, "figures that"),
        ({"tflops": {"useful": 1.0}}, "figures that"),
        ({"reason": "none"}, "figures that"),
        ({"status": "failed"}, "figures that"),
        ({"losses": [float("nan")]}, "losses is"),
        ({"parameter_count": 1.5}, "parameter_count is 1.5, expected int"),
        ({"peak_memory_bytes": True}, "peak_memory_bytes is True"),
        ({"versions": {"torch": 2}}, "versions is"),
        ({"tokens_per_second": -5.0}, "tokens_per_second is -5, expected 0 to"),
        ({"energy_joules": 5.0}, "figures that"),
        ({"energy_joules": 6144.0, "joules_per_token": 2.0}, "figures that"),
        ({"energy_joules": -6144.0, "joules_per_token": -1.0}, "figures that"),
    ],
)
def test_records_that_contradict_themselves_are_refused(changes, expected: str) -> None:
    with pytest.raises(ResultsError, match=expected):
        replace(record(), **changes)


def test_broken_record_files_are_one_line_with_its_number(tmp_path: Path) -> None:
    good = record().to_json()
    broken = {
        good[:-20]: "not a JSON record",
        "[1]": "a JSON list",
        good.replace('"schema":2', '"schema":3'): "schema 3, this version reads 1 and 2",
        good.replace('"schema":2', '"schema":2,"more":0'): "unknown fields: more",
        good.replace('"device":"cpu",', ""): "fields are missing",
        good.replace("4.25", "NaN"): "NaN is not a number",
        "[" * 20000: "not a JSON record",
    }
    for line, expected in broken.items():
        (tmp_path / RECORDS).write_text(f"{good}\n\n{line}\n")
        with pytest.raises(ResultsError) as caught:
            read_records(tmp_path / RECORDS)
        assert f"{RECORDS}:3: " in str(caught.value) and expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_table_is_plain_ascii_away_from_a_terminal() -> None:
    out = io.StringIO()
    kernels = {"products": "cublaslt", "exchange": "nccl"}
    print_report(record(held_out_loss=4.5, peak_memory_bytes=3 << 30, kernels=kernels), out)
    text = out.getvalue()
    assert text.isascii() and "\x1b" not in text
    for part in ("819", "2.5 median of 3, spread 80.0 %", "(useful)", "(artifact)", "4.2500"):
        assert part in text
    last = ("smoke on 2 x cpu", "products cublaslt, exchange nccl")
    for part in ("held-out loss", "4.5000", "3.00 GiB", *last):
        assert part in text
    out = io.StringIO()
    print_report(failure("no memory [b] \u2713"), out)
    assert "no memory [b] ?" in out.getvalue() and "tokens/s" not in out.getvalue()


def test_the_energy_stands_beside_the_figures() -> None:
    """Of all devices and measured iterations: 3 of 16 x 128 tokens, in 8.5 s on 2 devices."""
    run = record(**energy(Case.from_dict(record().case), 3, 1536.0))
    assert (run.energy_joules, run.joules_per_token) == (1536.0, 0.25)
    assert RunRecord.from_json(run.to_json()) == run
    assert dict(report_lines(run))["energy"] == "0.25 J a token, 90 W a device"
    assert "energy" not in dict(report_lines(record()))
    assert "J/token" in page([run, record()], "x") and "J/token" not in page([record()], "x")
    assert ladder.table([("tuned", run)])[-1].endswith(" 250")


def test_the_ladder_has_80_columns() -> None:
    case = find_case("tuned", 1)
    rows = [
        record("tuned", 1, "cuda", **measured(case, [seconds] * 19 + [1.2 * seconds]))
        for seconds in (22.1, 1.05)
    ]
    rows = [replace(row, peak_memory_bytes=130 << 30, **energy(case, 20, 5e3)) for row in rows]
    lines = ladder.table([("a name that is longer than its column", row) for row in rows])
    assert max(map(len, lines)) <= 80


def test_the_table_in_a_terminal_keeps_brackets() -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    print_report(failure("no memory [b] left"), out)
    assert "no memory [b] left" in out.getvalue()
    out = Terminal()
    with Progress(2, 100, out) as progress:
        progress.note("products are slow [b]")
    assert "note: products are slow [b]" in out.getvalue()


def test_the_closing_table_of_all_cases_fits_a_terminal() -> None:
    from dsmoe.benchmark.run.every_case import table_of

    head, *lines = table_of([record("artifact", 8, "cuda"), failure("killed", "artifact", 4)])
    assert head.split()[:3] == ["case", "devices", "tokens/s"] and head.endswith("ended")
    assert lines[0].split()[:2] == ["2.4B", "8"] and lines[0].split()[-1] == "ok"
    assert lines[1].split() == ["1.3B", "4", "-", "-", "-", "-", "failed"]
    assert max(map(len, [head, *lines])) <= 80
