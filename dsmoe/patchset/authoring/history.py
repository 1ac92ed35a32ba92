"""Every upstream file's content after every patch, and how an edit enters it.

A history lists, for one file, its entry on the base and then after each patch of the series
(None: no such file). A diff is the step between two neighbours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from dsmoe.common.errors import ExportRefused
from dsmoe.patchset.git import Git
from dsmoe.patchset.series import FileDiff, Series
from dsmoe.patchset.tree import Change, Entry, make_tree

History = Dict[str, List[Optional[Entry]]]

# The one form of the diffs in patch/. One line of context: context is upstream's text.
_FORM = (
    "diff-tree", "-r", "-p", "-U1", "--full-index", "--binary", "--no-renames", "--no-color",
    "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip


def read_history(series: Series, base: Mapping[str, Entry]) -> History:
    """The histories of all files that the patches of ``series`` touch."""
    history: History = {
        item.path: [base.get(item.path)] for patch in series.patches for item in patch.files
    }
    for patch in series.patches:
        diffs = {item.path: item for item in patch.files}
        for path, states in history.items():
            item = diffs.get(path)
            states.append(states[-1] if item is None else _after(states[-1], item))
    return history


def _after(last: Entry | None, item: FileDiff) -> Entry | None:
    mode = item.new_mode or (last[0] if last else "100644")
    if item.old_id is None and item.new_id is None:  # a mode change alone, or an empty file
        return (mode, last[1]) if last else None
    return (mode, item.new_id) if item.new_id is not None else None


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
    with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
        names = []
        for name, entry in (("ours", ours), ("base", base), ("theirs", theirs)):
            file = Path(folder) / name
            file.write_bytes(git.run("cat-file", "blob", entry[1]).out)
            names.append(str(file))
        # Any status but 0: conflicts (their number), or a binary file (255).
        result = git.run("merge-file", "-p", "-q", *names, ok=tuple(range(256)))
    if result.status:
        return None
    oid = git.run("hash-object", "-w", "--stdin", stdin=result.out).text
    return (ours[0] if base[0] == theirs[0] else theirs[0], oid)


def make_diff(git: Git, history: History, number: int) -> bytes:
    """The diff of patch ``number``; empty when it changes nothing. Needs a temporary index."""
    before = {path: states[number] for path, states in history.items()}
    after = {path: states[number + 1] for path, states in history.items()}
    paths = [path for path in history if before[path] != after[path]]
    old = make_tree(git, {path: before[path] for path in paths if before[path]})
    new = make_tree(git, {path: after[path] for path in paths if after[path]})
    return git.run(*_FORM, old, new).out
