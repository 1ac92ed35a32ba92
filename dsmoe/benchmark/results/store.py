"""The two result files of a folder, which agree: a row and a JSON record for every run.

``results_e2e.tsv`` holds the artifact's rows (rows.py), ``results_e2e.jsonl`` one RunRecord a
line (record.py). A row is a function of its record and both are written under one lock. Nothing
that was written whole is ever removed. The next writer repairs what a kill left: a torn last line
goes to ``<file>.torn``, and the row that the last record lacks is added.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Callable, Iterator

import psutil
from filelock import FileLock, Timeout

from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.rows import Row, numbered_lines, parse_row, read_rows, row_of
from dsmoe.common.errors import ResultsError
from dsmoe.common.files import refuse_output

ROWS = "results_e2e.tsv"
RECORDS = "results_e2e.jsonl"
LOCK = ".results_e2e.lock"
LOCK_SECONDS = 120
# More than one record and its row take: a record is a few kilobytes, plus 20 bytes an iteration.
RESERVE_BYTES = 1 << 20


@contextlib.contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Holds disk space in ``folder`` for the length of the block.

    A run that fills the disk can then still write its row. Raises :class:`ResultsError` where the
    space is not there to begin with.
    """
    path = folder / f".reserve.{os.getpid()}"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_left_over(folder)
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise ResultsError(
                f"{folder}: cannot hold {RESERVE_BYTES >> 20} MiB of results: {error.strerror}; "
                f"{'free some space or ' if full else ''}name another folder with --output"
            ) from error
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_left_over(folder: Path) -> None:
    """Remove what runs that were killed have held, known by process ids that are gone."""
    for path in folder.glob(".reserve.*"):
        number = path.suffix[1:]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            path.unlink(missing_ok=True)


def append(folder: Path, record: RunRecord) -> Row:
    """Writes the record and its row to the two files in ``folder`` and returns the row.

    Either both lines are there afterwards or, when the disk is full or a file cannot be
    written, neither, and :class:`ResultsError` says why.
    """
    row = row_of(record)
    records, rows = folder / RECORDS, folder / ROWS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / LOCK, records, rows):
            _refuse_odd(path)
        with FileLock(str(folder / LOCK), timeout=LOCK_SECONDS):
            _mend(records, rows)
            with _undo_on_error(records), _undo_on_error(rows):
                _append_line(records, record.to_json())
                _append_line(rows, row.line())
    except Timeout as error:
        raise ResultsError(
            f"{folder / LOCK}: held by another process for {LOCK_SECONDS} s; end it or remove "
            "the file"
        ) from error
    except OSError as error:
        name = error.filename or folder
        full = " (free some space)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        full = full or "; name another folder with --output"
        raise ResultsError(f"{name}: the result was not written: {error.strerror}{full}") from error
    return row


def _append_line(path: Path, line: str) -> None:
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    _refuse_odd(path)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


def _refuse_odd(path: Path) -> None:
    """Raises OSError where a device, a pipe or a folder has the name of a result file."""
    if os.path.lexists(path):
        refuse_output(path)


@contextlib.contextmanager
def _undo_on_error(path: Path) -> Iterator[None]:
    """Cuts ``path`` back to its length if the block raises."""
    length = path.stat().st_size if path.exists() else 0
    try:
        yield
    except BaseException:
        if path.is_file():
            os.truncate(path, length)
        raise


def _mend(records: Path, rows: Path) -> None:
    """Ends or sets aside last lines without a line end; adds the last record's missing row."""
    _mend_tail(records, lambda tail: _parses(RunRecord.from_json, tail))
    lines = [line for line in _read_text(records).split("\n") if line.strip()]
    expected = None
    if lines and _parses(RunRecord.from_json, lines[-1]):
        expected = row_of(RunRecord.from_json(lines[-1])).line()
    _mend_tail(rows, lambda tail: _is_whole_row(tail, expected))
    if expected is not None and expected not in _read_text(rows).split("\n"):
        _append_line(rows, expected)


def _is_whole_row(tail: str, expected: str | None) -> bool:
    """A row cut inside its time stamp still parses: only the record's own row can tell."""
    cut = expected is not None and expected != tail and expected.startswith(tail)
    return _parses(parse_row, tail) and not cut


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ResultsError:
        return False
    return True


def _mend_tail(path: Path, is_whole: Callable[[str], bool]) -> None:
    data = path.read_bytes() if path.is_file() else b""
    start = data.rfind(b"\n") + 1
    tail = data[start:].decode("utf-8", "replace")
    if tail and (is_whole(tail) or tail.startswith("#")):
        _append_line(path, "")
    elif tail:
        _append_line(path.with_name(path.name + ".torn"), tail)
        os.truncate(path, start)


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_records(path: Path) -> list[RunRecord]:
    """All records of a file, each checked. Raises :class:`ResultsError` with file and line."""
    records = []
    for number, line in numbered_lines(path):
        try:
            records.append(RunRecord.from_json(line))
        except ResultsError as error:
            raise ResultsError(f"{path}:{number}: {error}; fix or remove the line") from error
    return records


def some_records(path: Path) -> list[RunRecord]:
    """As :func:`read_records`; a file without a record is a ResultsError too."""
    records = read_records(path)
    if not records:
        raise ResultsError(
            f"{path}: has no record; expected at least one, which dsmoe run --output FOLDER writes"
        )
    return records


def check_agreement(folder: Path) -> int:
    """The number of records in ``folder``; raises :class:`ResultsError` if one has no row."""
    rows = {row.line() for row in read_rows(folder / ROWS)}
    records = read_records(folder / RECORDS)
    for number, record in enumerate(records, 1):
        if row_of(record).line() not in rows:
            raise ResultsError(
                f"{folder / ROWS}: the row of record {number} in {RECORDS} is missing; add it or "
                "remove the record"
            )
    return len(records)
