"""Every upstream file's content after every patch, and how an edit enters it.

A history lists, for one file, its entry on the base and then after each patch of the series
(None: no such file). A diff is the step between two neighbours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Dict, List, Optional

from dsmoe.common.errors import ExportRefused
from dsmoe.patchset.checkout.build import Built
from dsmoe.patchset.git import Git
from dsmoe.patchset.patch_file import FileDiff, parse_diff
from dsmoe.patchset.placing import occurrences
from dsmoe.patchset.series import Series
from dsmoe.patchset.tree import Change, Entry, make_tree

History = Dict[str, List[Optional[Entry]]]

_MOST_CONTEXT = 8
# The one form of the diffs in patch/, with little context: context is upstream's text.
_FORM = (
    "diff-tree", "-r", "-p", "--full-index", "--binary", "--no-renames", "--no-color",
    "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip


def read_history(series: Series, built: Built) -> History:
    """The histories of all files that the patches of ``series`` touch; ``built`` is its result."""
    base = built.base_entries
    history: History = {
        item.path: [base.get(item.path)] for patch in series.patches for item in patch.files
    }
    for after in built.steps:
        for path, states in history.items():
            states.append(after.get(path, states[-1]))
    return history


def touching(history: History, path: str) -> list[int]:
    """Numbers (from 0) of the patches that change ``path``."""
    states = history.get(path, [])
    return [at - 1 for at in range(1, len(states)) if states[at] != states[at - 1]]


def take_edit(
    git: Git, history: History, names: list[str], path: str, change: Change, patch: int
) -> None:
    """Let patch number ``patch`` make ``change`` to ``path`` as well.

    After the last patch that touches the file its content is the edited one; in the states
    before, from ``patch`` on, the edit is merged three-way.

    Raises:
        ExportRefused: later patches change the same lines, or the content cannot be merged.
    """
    states = history[path]
    last = max(touching(history, path), default=-1)
    for at in range(patch + 1, len(states)):
        if at > last:
            states[at] = change[1]
            continue
        merged = _merge(git, states[at], change)
        if merged is None:
            raise ExportRefused(
                f"{path}: the edit does not merge into {names[patch]}, since later patches change "
                f"the same lines; use --to {names[last]}, the last patch on that file"
            )
        states[at] = merged


def _merge(git: Git, ours: Entry | None, change: Change) -> Entry | None:
    base, theirs = change
    if ours is None or base is None or theirs is None:
        return None
    if any(not entry[0].startswith("100") for entry in (ours, base, theirs)):
        return None
    merged, clean = merge_contents(git, *(read_blob(git, e[1]) for e in (ours, base, theirs)))
    if not clean:
        return None
    oid = git.run("hash-object", "-w", "--stdin", stdin=merged).text
    return (ours[0] if base[0] == theirs[0] else theirs[0], oid)


def read_blob(git: Git, oid: str) -> bytes:
    """The content of a blob."""
    return git.run("cat-file", "blob", oid).out


def merge_contents(git: Git, ours: bytes, base: bytes, theirs: bytes) -> tuple[bytes, bool]:
    """The three-way merge, with conflict markers where it is not clean; whether it is."""
    with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
        names = []
        for name, content in (("here", ours), ("before", base), ("after", theirs)):
            (Path(folder) / name).write_bytes(content)
            names.append(str(Path(folder) / name))
        # Any status but 0: conflicts (their number), or a binary file (255).
        result = git.run("merge-file", "-p", "-q", *names, ok=tuple(range(256)))
    return result.out, result.status == 0


def make_diff(git: Git, history: History, number: int) -> bytes:
    """The diff of patch ``number``; empty when it changes nothing. Needs a temporary index.

    It has one line of context, and for a file where that leaves the place of a hunk uncertain as
    many more lines as make it certain, so that another base can share the patch.
    """
    before = {path: states[number] for path, states in history.items()}
    after = {path: states[number + 1] for path, states in history.items()}
    paths = [path for path in history if before[path] != after[path]]
    old = make_tree(git, {path: before[path] for path in paths if before[path]})
    new = make_tree(git, {path: after[path] for path in paths if after[path]})
    diff = git.run(*_FORM, "-U1", old, new).out
    wider = {
        item.path: _context(git, item.path, before[item.path], old, new)
        for item in parse_diff(diff)
        if not _is_certain(git, item, before[item.path])
    }
    if not wider:
        return diff
    one_by_one = (_diff_of(git, path, wider.get(path, 1), old, new) for path in _paths_of(diff))
    return b"".join(one_by_one)


def _paths_of(diff: bytes) -> list[str]:
    return [item.path for item in parse_diff(diff)]


def _diff_of(git: Git, path: str, context: int, old: str, new: str) -> bytes:
    env = {"GIT_LITERAL_PATHSPECS": "1"}
    return git.run(*_FORM, f"-U{context}", old, new, "--", path, env=env).out


def _context(git: Git, path: str, before: Entry | None, old: str, new: str) -> int:
    for context in range(2, _MOST_CONTEXT + 1):
        [item] = parse_diff(_diff_of(git, path, context, old, new))
        if _is_certain(git, item, before):
            return context
    return 1  # it cannot be shared with a base whose file differs


def _is_certain(git: Git, item: FileDiff, before: Entry | None) -> bool:
    if before is None or not item.hunks:
        return True
    content = read_blob(git, before[1])
    return all(occurrences(content, hunk.before) <= 1 for hunk in item.hunks)
