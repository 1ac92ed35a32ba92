"""What was found in releases of DeepSpeed, kept in releases.json, and the page made of it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from dsmoe.common.errors import ResultsError
from dsmoe.common.files import write_atomically
from dsmoe.defects.against import FIXED, LIVES, NONE
from dsmoe.defects.listing import HERE, Proof

FILE = HERE / "releases.json"
#: What the package index has from 0.5.4 on (some numbers were never published), on 2026-11-28.
_PATCH_NUMBERS = {
    "0.5": "4 5 6 7 8 9 10",
    "0.6": "0 1 3 4 5 6 7",
    "0.7": "0 1 2 3 4 5 6 7",
    "0.8": "0 1 2 3",
    "0.9": "0 1 2 3 4 5",
    "0.10": "0 1 2 3",
    "0.11": "0 1 2",
    "0.12": "0 1 2 3 4 5 6",
    "0.13": "0 1 2 3 4 5",
    "0.14": "0 1 2 3 4 5",
    "0.15": "0 1 2 3 4",
    "0.16": "0 1 2 3 4 5 6 7 8 9",
    "0.17": "0 1 2 3 4 5 6",
    "0.18": "0 1 2 3 4 5 6 7 8 9",
    "0.19": "0 1 2 3 4 5 6 7 8",
}
PUBLISHED = [f"{minor}.{n}" for minor, numbers in _PATCH_NUMBERS.items() for n in numbers.split()]


def order(release: str) -> tuple[int, ...]:
    """A key that sorts releases: 0.9.5 before 0.12.6."""
    return tuple(int(part) for part in release.split("+")[0].split(".") if part.isdigit())


def read(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """Release -> versions, date and verdicts, the oldest first. Raises ResultsError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file} cannot be read: {error}") from None
    return {name: found[name] for name in sorted(found, key=order)}


def record(versions: dict[str, str], verdicts: dict[str, dict[str, Any]], file: Path = FILE) -> str:
    """Keep what was found; a later run of a proof replaces the earlier. Returns the release."""
    releases = read(file)
    release = versions["deepspeed"].split("+")[0]
    kept = releases.get(release, {}).get("verdicts", {})
    releases[release] = {
        **versions,
        "date": date.today().isoformat(),
        "verdicts": dict(sorted({**kept, **verdicts}.items())),
    }
    ordered = {name: releases[name] for name in sorted(releases, key=order)}
    write_atomically(file, (json.dumps(ordered, indent=1) + "\n").encode())
    return release


def state_of(release: dict[str, Any], proof: Proof) -> str:
    """The verdict's word, or "-" where the proof was not run."""
    return str(release["verdicts"].get(proof.name, {}).get("state", "-"))


def bounds(releases: dict[str, dict[str, Any]], proof: Proof) -> tuple[str, str] | None:
    """The last release that has the defect and the first judged after it that has it not.

    None where the newest that was judged has it, or none has.
    """
    states = {name: state_of(release, proof) for name, release in releases.items()}
    known = [name for name, state in states.items() if state in (LIVES, FIXED, NONE)]
    lives = [name for name in known if states[name] == LIVES]
    if not lives or lives[-1] == known[-1]:
        return None
    return lives[-1], known[known.index(lives[-1]) + 1]


def since(releases: dict[str, dict[str, Any]], proof: Proof) -> str:
    """Where it was seen: the last release that has it and the first that has it not."""
    states = {name: state_of(release, proof) for name, release in releases.items()}
    known = [name for name, state in states.items() if state in (LIVES, FIXED, NONE)]
    if not known:
        return "not known"
    if states[known[-1]] == LIVES:
        return f"lives in {known[-1]}"
    found = bounds(releases, proof)
    if found is None:
        return f"{_word(states[known[0]])} in {known[0]} and later"
    last, first = found
    between = [name for name in PUBLISHED if order(last) < order(name) < order(first)]
    if not between:
        return f"{_word(states[first])} since {first}"
    return f"{_word(states[first])} after {last}, by {first}"


def _word(state: str) -> str:
    return "not applicable" if state == NONE else "fixed"
