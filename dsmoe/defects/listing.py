"""The proofs that are there, and the patch of each defect."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmoe.patchset.authoring.lint import read_fields
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.series import load_series

HERE = Path(__file__).resolve().parent
#: The program that runs proofs in another Python.
THERE = HERE / "there.py"


@dataclass(frozen=True)
class Proof:
    """A file in proofs/KIND: ``name`` is KIND/FILE; a defect may have several proofs."""

    name: str
    number: int
    title: str
    processes: int

    @property
    def path(self) -> Path:
        """The file that the other Python runs."""
        return HERE / "proofs" / f"{self.name}.py"


def proofs() -> list[Proof]:
    """Every proof, by number of its defect and name."""
    found = []
    for path in sorted((HERE / "proofs").glob("*/*.py")):
        if path.stem != "__init__":
            data = _constants(path)
            name = f"{path.parent.name}/{path.stem}"
            processes = max(data.get("PHASES", (1,)))
            found.append(Proof(name, data["NUMBER"], data["TITLE"], processes))
    return sorted(found, key=lambda proof: (proof.number, proof.name))


def _constants(path: Path) -> dict[str, Any]:
    """The literals that a file gives to names; the file is read, not run."""
    constants = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    return constants


def patches() -> dict[int, list[str]]:
    """Number of a defect -> the patches of base bd3ebd whose header names it."""
    found: dict[int, list[str]] = {}
    for patch in load_series(load_bases(name="bd3ebd")[0]).patches:
        numbers = read_fields(patch.header).get("Defect", "")
        for number in filter(None, numbers.replace(",", " ").split()):
            found.setdefault(int(number), []).append(patch.name[: -len(".patch")])
    return found
