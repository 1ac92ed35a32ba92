"""The artifact's tab-separated result row, written and read; a value is never run as code.

The eight columns (alpa-projects/alpa, osdi22_artifact/data_format.md at commit 8350d913)::

    exp_name instance num_hosts num_devices_per_host model_name method value time_stamp

``value`` is a Python dictionary with ``tflops`` (the artifact's formula, per device) and
``parameter_count`` in billions, as osdi22_artifact/deepspeed/pretrain_gpt2_moe.py writes it; a
failed run has ``tflops`` -1 and a ``reason``. The artifact's plot (osdi22_artifact/common.py,
``parse_tsv_file``) skips lines that start with # and empty lines, keeps the rows whose exp_name
is e2e, multiplies the two counts to the number of GPUs, evaluates ``value`` as code, and draws
the best ``tflops`` of each (model_name, number, method); it reads no other key.

The artifact's script writes 0 devices for whole hosts: it divides the number of GPUs by 8 for the
hosts, and takes the rest as the devices. Such a row is read as 8 devices a host.
"""

from __future__ import annotations

import ast
import math
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from dsmoe.benchmark.results import foreign
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.common.errors import ResultsError
from dsmoe.common.files import read_large

VALUE_LENGTH = 4000
DEVICES_OF_A_WHOLE_HOST = 8


class Row(NamedTuple):
    """One line of the artifact's format; ``value`` holds numbers, texts and lists of them."""

    exp_name: str
    instance: str
    num_hosts: int
    num_devices_per_host: int
    model_name: str
    method: str
    value: dict[str, Any]
    time_stamp: float

    @property
    def num_devices(self) -> int:
        return self.num_hosts * self.num_devices_per_host

    def line(self) -> str:
        """The row as text, without the line end."""
        return "\t".join(str(column) for column in self)


def row_of(record: RunRecord) -> Row:
    """The row of a record: ``tflops`` by the artifact's formula at the median step time."""
    value: dict[str, Any] = {
        "tflops": record.tflops["artifact"] if record.status == "ok" else -1,
        "parameter_count": record.parameter_count / 10**9,
    }
    stages = record.case["parallel"].get("pipeline_parallel_size", 1)
    if stages > 1:
        value["pipeline_parallel_size"] = stages
    if record.reason is not None:
        value["reason"] = record.reason
    return Row(
        record.exp_name,
        record.instance,
        record.num_hosts,
        record.num_devices_per_host,
        record.model_name,
        record.method,
        value,
        record.time_stamp,
    )


def parse_row(line: str) -> Row:
    """The row of one line. Raises :class:`ResultsError` that says what is wrong with it."""
    columns = line.strip().split("\t")
    if len(columns) != len(Row._fields):
        raise ResultsError(f"{len(columns)} columns, expected {len(Row._fields)}")
    values = dict(zip(Row._fields, columns))
    counts = {}
    for name in ("num_hosts", "num_devices_per_host"):
        text = values[name].strip()
        least = 1 if name == "num_hosts" else 0
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
            raise ResultsError(f"{name} is {text!r:.40}, expected a positive number")
        counts[name] = int(text) or DEVICES_OF_A_WHOLE_HOST
    try:
        time_stamp = float(values["time_stamp"])
    except ValueError:
        time_stamp = math.nan
    if not foreign.is_time(time_stamp):
        raise ResultsError(f"time_stamp is {values['time_stamp']!r:.40}, expected seconds")
    for name in ("exp_name", "instance", "model_name", "method"):
        if not values[name].isprintable():
            raise ResultsError(f"{name} is {values[name]!a:.40}, expected a plain name")
    return Row(
        values["exp_name"],
        values["instance"],
        counts["num_hosts"],
        counts["num_devices_per_host"],
        values["model_name"],
        values["method"],
        _parse_value(values["value"]),
        time_stamp,
    )


def _parse_value(text: str) -> dict[str, Any]:
    expected = "expected a dictionary of numbers with the key 'tflops'"
    if len(text) > VALUE_LENGTH:
        raise ResultsError(f"a value of {len(text)} characters, {expected}")
    try:
        with warnings.catch_warnings():  # of an odd escape
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ResultsError(f"value is {text!r:.60}, {expected}") from error
    good = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if not good or not _figure(value.get("tflops")) or not all(map(_plain, value.values())):
        raise ResultsError(f"value is {text!r:.60}, {expected}")
    return dict(value)


_finite = foreign.is_number


def _figure(value: Any) -> bool:
    return _finite(value) and abs(value) <= foreign.LARGEST_FIGURE


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_finite(item) or isinstance(item, str) for item in value)
    return isinstance(value, (str, bool, type(None))) or _finite(value)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not empty. Raises :class:`ResultsError`."""
    try:
        text = read_large(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise ResultsError(
            f"{path}: cannot be read: {error.strerror}; expected a results folder, as dsmoe run "
            "writes one, or a .jsonl or .tsv file of it"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def read_rows(path: Path, say: Callable[[str], object] = lambda line: None) -> list[Row]:
    """All rows of a file, comments and empty lines skipped as the artifact's plot does.

    ``say`` gets a line about each row that was read as something else than it says. Raises
    :class:`ResultsError` with file and line number for the first that is not a row.
    """
    rows = []
    for number, line in numbered_lines(path):
        if line.strip().startswith("#"):
            continue
        try:
            rows.append(parse_row(line))
        except ResultsError as error:
            raise ResultsError(f"{path}:{number}: {error}; fix or remove the line") from error
        if int(line.split("\t")[3]) == 0:
            say(
                f"{path}:{number}: 0 devices a host, as the artifact's script writes for whole "
                f"hosts; read as {rows[-1].num_devices_per_host}"
            )
    return rows
