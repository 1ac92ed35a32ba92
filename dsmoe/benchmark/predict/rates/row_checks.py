"""What a row of dsmoe calibrate must have, for a cluster's file that was edited or cut off."""

from __future__ import annotations

from typing import Any, Mapping

#: All figures of machines lie between these, and no prediction then leaves what floats hold.
LEAST, MOST = 1e-12, 1e15
#: Words in a row; all else are numbers.
WORDS = {"kind", "name", "dtype", "backend", "shape"}
#: Kind of a CPU's row that a prediction reads (cpu.py) -> its numbers above 0. Those of GPUs are
#: kept as they were measured, and predictions do not read them.
NEEDS = {
    "product": ("processes",),
    "pass": ("processes", "elements", "ms"),
    "collective": ("group", "bytes", "ms"),
    "layers": (
        "processes", "tokens", "width", "heads", "length", "factor", "vocabulary", "experts",
        "count",
    ),
}  # fmt: skip
_NAMED = ("pass", "collective", "layers")


def check_rows(rows: Any, device: str) -> None:
    """Raises ValueError, with the row's number, for rows that dsmoe calibrate does not write: no
    kind, a figure below 0 or over MOST, no field that a prediction for ``device`` needs."""
    if not isinstance(rows, list):
        raise ValueError(f"rows is a {type(rows).__name__}, expected a list")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
            raise ValueError(f"row {number} has no kind")
        if "error" in row:
            continue
        for name in set(row) - WORDS:
            value: Any = row.get(name)
            known = type(value) in (int, float)
            if not known or not (value == 0 or LEAST <= value <= MOST):
                raise ValueError(
                    f"row {number}: {name} is {value!r:.40}, expected 0, or a number from "
                    f"{LEAST:g} to {MOST:g}"
                )
        if device == "cpu":
            _check_needs(number, row)


def _check_needs(number: int, row: Mapping[str, Any]) -> None:
    kind = row["kind"]
    for name in NEEDS.get(kind, ()):
        if not row.get(name):
            raise ValueError(
                f"row {number}, of kind {kind}: {name} is {row.get(name)!r}, expected a number "
                "above 0; measure again"
            )
    if kind == "layers" and "ms" not in row:
        raise ValueError(f"row {number}, of kind layers: it has no ms; measure again")
    if kind in _NAMED and not isinstance(row.get("name"), str):
        raise ValueError(f"row {number}, of kind {kind}: it has no name; measure again")
    if kind == "collective" and row["group"] < 2:
        raise ValueError(f"row {number}: a group of {row['group']!r}, expected 2 or more processes")


def absent(rows: tuple[Mapping[str, Any], ...], processes: int) -> list[str]:
    """The kinds of NEEDS of which a CPU's ``rows`` have none, for a case of ``processes``."""
    found = {row["kind"] for row in rows if "error" not in row}
    wanted = [kind for kind in NEEDS if kind != "collective" or processes > 1]
    return [kind for kind in wanted if kind not in found]
