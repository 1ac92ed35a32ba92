"""The locked result of a base: ``result.json``, the ids that every machine must get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

from dsmoe.common.errors import ResultMismatch
from dsmoe.common.typed import program
from dsmoe.patchset.base import Base
from dsmoe.patchset.inputs import read_input


def read_result(base: Base) -> tuple[dict[str, str], str]:
    """The locked tree ids by top folder, and the digest of the series that gives them.

    Raises:
        OSError, ValueError: the file cannot be read, or is not one that this project writes.
    """
    try:
        data: Any = json.loads(read_input(base.result_file))
        trees, series = data["trees"], data["series"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"unexpected content: {error!r}"[:200]) from None
    if not (isinstance(trees, dict) and all(isinstance(oid, str) for oid in trees.values())):
        raise ValueError("trees: expected an id for each folder")
    return dict(trees), str(series)


def result_content(base: Base, digest: str, trees: Mapping[str, str]) -> bytes:
    """The bytes of result.json for the series with ``digest``."""
    data = {"base": base.name, "series": digest, "trees": dict(sorted(trees.items()))}
    return (json.dumps(data, indent=2) + "\n").encode()


def check_result(base: Base, digest: str, trees: Mapping[str, str], path: Path) -> None:
    """Compare with result.json; ``ResultMismatch`` names what differs. ``path`` is the checkout."""
    file = base.result_file
    remedy = f"if patch/ or overlay/ was edited on purpose: {program('apply')} {path} --lock"
    try:
        locked, series = read_result(base)
    except FileNotFoundError:
        raise ResultMismatch(f"{file} is missing: no result is locked; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ResultMismatch(f"{file} cannot be read ({error}); {remedy}") from None
    details = [
        f"{top}/ would be {trees.get(top, 'untouched')}, locked is {locked.get(top, 'none')}"
        for top in sorted(set(locked) | set(trees))
        if trees.get(top) != locked.get(top)
    ]
    if digest != series:
        raise ResultMismatch(
            f"patch/ and overlay/ are not those locked in {file} "
            f"(digest {digest[:12]}, locked {series[:12]}); {remedy}",
            details,
        )
    if details:
        raise ResultMismatch(f"the built result is not the one locked in {file}", details)
