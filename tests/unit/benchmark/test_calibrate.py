"""One failing measurement costs one row; rows are on disk as soon as they are there."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dsmoe.benchmark.calibrate import clock as clocks  # noqa: E402
from dsmoe.benchmark.calibrate import device_rates  # noqa: E402
from dsmoe.benchmark.calibrate.shapes import CPU  # noqa: E402
from dsmoe.benchmark.calibrate.start_processes import read_rows  # noqa: E402


def clock_of(out: io.StringIO, seconds: float = 60) -> clocks.Clock:
    return clocks.Clock(out, torch.device("cpu"), time.monotonic() + seconds, 1)


def rows_of(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_measurement_that_fails_is_a_row_and_the_next_goes_on() -> None:
    out = io.StringIO()
    clock = clock_of(out)

    def fails() -> object:
        raise RuntimeError("no such kernel on this card")

    clock.measure(lambda: fails, {"kind": "product", "name": "bad"})
    clock.measure(lambda: lambda: time.sleep(0.002), {"kind": "product", "name": "good"}, 0.01)
    bad, good = rows_of(out)
    assert bad["error"] == "RuntimeError: no such kernel on this card"
    assert "ms" not in bad
    assert float(str(good["ms"])) >= 2
    assert good["n"] == 3
    assert good["processes"] == 1


def test_after_the_deadline_nothing_is_measured_and_every_row_says_so() -> None:
    out = io.StringIO()
    clock_of(out, -1).measure(lambda: lambda: None, {"kind": "copy"})
    assert "time for all measurements is used up" in str(rows_of(out)[0]["error"])


def test_a_part_that_cannot_be_set_up_costs_its_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()

    def broken(clock: clocks.Clock, shapes: object) -> None:
        raise OSError("broken")

    done = []
    for name in ("launches", "products", "attention", "passes", "gating", "copies"):
        monkeypatch.setattr(device_rates, name, lambda *a, name=name: done.append(name))
    monkeypatch.setattr(device_rates, "optimizer_passes", lambda *a: done.append("optimizer"))
    monkeypatch.setattr(device_rates, "sustained", lambda *a: done.append("sustained"))
    monkeypatch.setattr(device_rates, "launches", broken)
    device_rates.measure_device(clock_of(out), CPU)
    assert rows_of(out)[0]["error"] == "OSError: broken"
    assert {"products", "attention", "passes", "optimizer", "sustained"} <= set(done)


def test_every_part_gives_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of each operation: no name is misspelt, no shape is wrong."""
    out = io.StringIO()
    clock = clock_of(out)

    def once(make: object, what: dict[str, object], budget: float = 0) -> None:
        assert callable(make)
        make()()
        clock.row(**what)

    monkeypatch.setattr(clock, "measure", once)
    device_rates.measure_device(clock, CPU)
    rows = rows_of(out)
    assert not [row for row in rows if "error" in row]
    kinds = {row["kind"] for row in rows}
    assert kinds == {
        *("launch", "product", "attention", "pass", "optimizer", "gating", "copy", "sustained")
    }


def test_rows_of_a_process_that_was_ended_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text('{"kind": "copy"}\n{"kind": "pro', encoding="ascii")
    assert read_rows(file) == [{"kind": "copy"}]
    assert read_rows(tmp_path / "none") == []
