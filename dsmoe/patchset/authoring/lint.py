"""The lint of a series: headers, names, tests named, and the form of the diffs.

Headers follow DEP-3: ``Description``, ``Origin`` or ``Bug``, ``Forwarded``; besides them
``X-Test`` names the tests that fail without the patch, ``Still-Needed`` what is known of later
releases, ``Defect`` a number in docs/reference/defects.md.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from dsmoe.common.errors import SeriesBroken
from dsmoe.common.places import project_root
from dsmoe.patchset.base import Base
from dsmoe.patchset.overlay import overlay_files
from dsmoe.patchset.patch_file import Patch, read_patch
from dsmoe.patchset.pending import STAGE
from dsmoe.patchset.series import read_names

MAX_ADDED = 60
_FIELD = re.compile(r"^([A-Z][A-Za-z-]*):(.*)$")
_KNOWN = {
    "Description",
    "Origin",
    "Bug",
    "Forwarded",
    "Still-Needed",
    "Defect",
    "X-Port",
    "X-Test",
    "Author",
    "Last-Update",
}
_PLAIN = {"series", "README.md", ".gitkeep", "base.json", "result.json", "files", STAGE}


def read_fields(header: bytes) -> dict[str, str]:
    """Header fields; continuation lines (indented) are joined with newlines.

    Raises:
        ValueError: a line is neither a field nor a continuation, or a field comes twice.
    """
    fields: dict[str, str] = {}
    last = ""
    for number, line in enumerate(header.decode("utf-8").splitlines(), 1):
        match = _FIELD.match(line)
        if not line.strip():
            last = ""
        elif match:
            last = match.group(1)
            if last in fields:
                raise ValueError(f"line {number}: {last} comes twice")
            fields[last] = match.group(2).strip()
        elif line.startswith(" ") and last:
            fields[last] += "\n" + line.strip()
        else:
            raise ValueError(f"line {number} is neither a field nor indented under one")
    return fields


def lint(base: Base, root: Path | None = None, allow_empty: bool = False) -> list[str]:
    """Every problem of the series of ``base``, a line for each; empty when there is none.

    ``root`` is the folder that X-Test and Defect refer to (default: the project's).
    """
    root = root or project_root()
    folder = base.series.parent
    try:
        names = read_names(base.series)
    except SeriesBroken as error:
        return [str(error)]
    problems = [f"{name}: listed twice" for name in sorted(set(names)) if names.count(name) > 1]
    if not names and not allow_empty:
        problems.append(f"{base.series}: the series is empty")
    listed = {(folder / name).resolve() for name in names} | set(base.overlays)
    for path in sorted(folder.iterdir()):
        if path.name not in _PLAIN and path.resolve() not in listed:
            problems.append(f"{path.name}: in {folder.name}/ but not in the series")
    owned: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            patch = read_patch(folder / name, name)
        except FileNotFoundError:
            problems.append(f"{name}: in the series but missing")
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
        else:
            problems += [f"{name}: {text}" for text in lint_patch(patch, root)]
            owned.update({item.path: name for item in patch.files})
    for target in overlay_files(base.overlays):
        if target in owned:
            problems.append(f"{owned[target]}: {target} is also a file of the overlay")
    return problems


def lint_patch(patch: Patch, root: Path) -> list[str]:
    """The problems of one patch."""
    return _lint_header(patch, root) + _lint_diff(patch)


def _lint_header(patch: Patch, root: Path) -> list[str]:
    if b"\r" in patch.header:
        return ["the header has CR line ends"]
    try:
        fields = read_fields(patch.header)
    except ValueError as error:  # UnicodeDecodeError is one
        return [f"header: {error}"]
    problems = [f"header: unknown field {name}" for name in fields if name not in _KNOWN]
    for name in ("Description", "Forwarded", "Still-Needed", "X-Test"):
        if not fields.get(name):
            problems.append(f"header: {name} is missing or empty")
    if not (fields.get("Origin") or fields.get("Bug")):
        problems.append("header: neither Origin nor Bug")
    if len(fields.get("Description", "").split("\n")[0]) > 72:
        problems.append("header: the first line of Description is over 72 characters")
    if any("TODO" in value for value in fields.values()):
        problems.append("header: TODO left in it")
    defect = fields.get("Defect")
    if defect is not None and not re.fullmatch(r"\d+(, *\d+)*", defect):
        problems.append(
            f"header: Defect is {defect!r}, expected numbers in docs/reference/defects.md"
        )
    for test in fields.get("X-Test", "").split():
        problems += _lint_test(test, root)
    return problems


def _lint_test(test: str, root: Path) -> list[str]:
    file, *names = test.split("::")
    if not file.startswith("tests/") or not names:
        return [f"X-Test: {test} is not of the form tests/...::name"]
    try:
        body: list[ast.stmt] = ast.parse((root / file).read_bytes()).body
    except OSError:
        return [f"X-Test: there is no {file}"]
    except SyntaxError:
        return [f"X-Test: {file} is not valid Python"]
    for name in names:
        wanted = name.split("[")[0]
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = [item for item in body if isinstance(item, kinds) and item.name == wanted]
        if not found:
            return [f"X-Test: {file} has no {wanted}"]
        body = found[-1].body
    return []


def _lint_diff(patch: Patch) -> list[str]:
    problems = []
    if not patch.files:
        problems.append("holds no diff")
    if re.search(rb"\n-- \r?\n[^\n]*\n*\Z", patch.diff):
        problems.append("ends in a mail signature")
    seen = set()
    for item in patch.files:
        if item.path in seen:
            problems.append(f"{item.path} comes twice")
        seen.add(item.path)
        if item.renames:
            problems.append(f"{item.path}: renamed or copied; write it as removed and added")
        ids = [oid for oid in (item.old_id, item.new_id) if oid is not None]
        if any(len(oid) != 40 for oid in ids) or (item.hunks and not ids):
            problems.append(f"{item.path}: no full blob ids in its index line")
        for hunk in item.hunks:
            if hunk.added > MAX_ADDED:
                problems.append(
                    f"{item.path}: the hunk at line {hunk.new_start} adds {hunk.added} lines "
                    f"(at most {MAX_ADDED}); move its body to overlay/"
                )
    return problems
