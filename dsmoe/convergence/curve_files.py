"""The files of a comparison: a curve for each arm and seed, and summary.json.

``ARM-SEED.jsonl`` has a line for each evaluation; it is there only when that run has finished.
``summary.json`` holds what all runs share, and for each run how it ended and its figures; the
figure and the table are functions of these files alone.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from dsmoe.benchmark.cases.case import EARLIER_NAMES
from dsmoe.benchmark.run.folder import read_json, write_json
from dsmoe.common.errors import ResultsError, UsageError
from dsmoe.common.files import read_large, write_output
from dsmoe.convergence.arms import ARMS

SUMMARY = "summary.json"
# Names in summaries until version 0.1.0, beside those of a case.
EARLIER_SETTINGS = {"batch": "global_batch_size", "micro_batch": "micro_batch_size"}
SCHEMA = 1
# What a file of another content raises where it is taken for a summary or a curve.
_WRONG = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
OK = "ok"
FAILED = "failed"


@dataclass(frozen=True)
class Curve:
    """One finished run: ``figures`` from the summary, ``points`` the lines of its curve."""

    arm: str
    seed: int
    figures: dict[str, Any]
    points: list[dict[str, Any]]


@contextlib.contextmanager
def shown(output: Path) -> Iterator[None]:
    """Around what shows the files of ``output``: a figure that they lack is a ResultsError."""
    try:
        yield
    except _WRONG as error:
        raise ResultsError(
            f"{output / SUMMARY}: a figure is missing or of another kind ({error!r:.100}); "
            "expected what dsmoe converge writes: train that arm again with --resume"
        ) from error


def run_name(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def open_summary(output: Path, common: dict[str, Any]) -> dict[str, Any]:
    """The summary in ``output``, or a new one. ``common``: setting, text, device, tree ids.

    Raises UsageError where the folder holds a comparison of another kind, whose runs must not
    stand beside those of this one.
    """
    if not (output / SUMMARY).exists():
        return {"schema": SCHEMA, "common": common, "runs": {}}
    summary = read_summary(output)
    # through JSON, as the stored one has been
    here = json.loads(json.dumps(common))
    other = sorted(key for key in here if summary["common"].get(key) != here[key])
    if other:
        raise UsageError(
            f"{output / SUMMARY} is of a comparison with another {', '.join(other)}; expected the "
            "same: name another folder with --output"
        )
    return summary


def read_summary(output: Path) -> dict[str, Any]:
    """Raises ResultsError where there is none that can be read."""
    path = output / SUMMARY
    try:
        summary = read_json(path)
        if summary["schema"] != SCHEMA:
            raise ResultsError(f"{path}: schema {summary['schema']}, expected {SCHEMA}")
        if not isinstance(summary["runs"], dict) or not isinstance(summary["common"], dict):
            raise TypeError("runs and common are no objects")
        common = summary["common"]
        if not all(isinstance(run, dict) for run in summary["runs"].values()):
            raise TypeError("a run is no object")
        setting = common.get("setting", {})
        names = {**EARLIER_NAMES, **EARLIER_SETTINGS}
        common["setting"] = {names.get(name, name): value for name, value in setting.items()}
        return dict(summary)
    except FileNotFoundError as error:
        raise ResultsError(
            f"{path}: no such file; expected the results of a comparison, which dsmoe converge "
            "--output writes"
        ) from error
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    except _WRONG as error:
        raise ResultsError(
            f"{path}: not the summary of a comparison ({error!s:.100}); name another folder"
        ) from error


def finished(output: Path, summary: dict[str, Any], name: str, identity: dict[str, Any]) -> bool:
    """Whether ``summary`` has the run ``name`` with its curve, made as ``identity`` says."""
    run = summary["runs"].get(name, {})
    same = run.get("identity") == json.loads(json.dumps(identity))
    return run.get("status") == OK and same and (output / f"{name}.jsonl").is_file()


def store(output: Path, summary: dict[str, Any], name: str, run: dict[str, Any]) -> None:
    """Add ``run``; for a finished one its curve is copied out of its folder first."""
    curve = output / f"{name}.jsonl"
    try:
        if run["status"] == OK:
            source = output / run["run_folder"] / "iterations.jsonl"
            write_output(curve, read_large(source))
        else:
            curve.unlink(missing_ok=True)
        summary["runs"][name] = run
        write_json(output / SUMMARY, summary)
    except OSError as error:
        raise ResultsError(f"{output}: cannot be written: {error.strerror}") from error


def read_curves(output: Path, summary: dict[str, Any]) -> list[Curve]:
    """The finished runs, in the order of the arms. Raises ResultsError for a broken curve."""
    curves = []
    for name, run in summary["runs"].items():
        if run.get("status") != OK:
            continue
        path = output / f"{name}.jsonl"
        try:
            lines = read_large(path).decode("utf-8").splitlines()
            points = [json.loads(line) for line in lines]
            for point in points:
                if not math.isfinite(float(point["tokens"]) + float(point["held_out_loss"])):
                    raise ValueError("tokens or held_out_loss is not finite")
            if not points:
                raise ValueError("it has no line")
            arm, seed = str(run["arm"]), int(run["seed"])
        except OSError as error:
            raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
        except _WRONG as error:
            raise ResultsError(
                f"{path}: not the curve of a run ({error!r:.100}); remove it and train that arm "
                "again with --resume"
            ) from error
        curves.append(Curve(arm, seed, run, points))
    order = list(ARMS)
    known = [curve for curve in curves if curve.arm in order]
    return sorted(known, key=lambda curve: (order.index(curve.arm), curve.seed))
