"""Applying one patch in a temporary index, and finding the place of its hunks.

A patch in bases/NAME is made for exactly the blobs that its ``index`` lines name. A
shared patch, which another base's folder holds, may find other blobs: each hunk is then placed by
its context, exactly and without fuzz, and its context must occur once in the file. The locked
result proves that the place is the right one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Mapping, Sequence

from dsmoe.patchset.git import Git
from dsmoe.patchset.patch_file import FileDiff, Patch
from dsmoe.patchset.tree import Entries, Entry, index_info, read_blobs, read_index_at

_FAILED = re.compile(r"^error: patch failed: (.*):(\d+)$")
_FILE_ERROR = re.compile(r"^error: (.*?): (.*)$")


@dataclass
class PlacingProgress:
    """The content of every file while a series is applied, and where it failed so far."""

    entries: dict[str, Entry | None]
    broken: dict[str, str] = field(default_factory=dict)
    #: For each patch applied: its files, with their entries after it.
    after: list[dict[str, Entry | None]] = field(default_factory=list)


def apply_together(git: Git, patches: Sequence[Patch], progress: PlacingProgress) -> bool:
    """Apply ``patches`` by one git for as many in a row as do not wait for one another.

    A git for each patch takes a second a series. False where anything does not fit: the index and
    ``progress`` are then of no use, and :func:`apply_patch` says what it is.
    """
    row = _Row()
    for patch in patches:
        if row.must_come_before(patch, progress):
            if not row.apply(git, progress):
                return False
            row = _Row()
        moved = [item for item in patch.files if not _is_made_for(item, progress)]
        if not patch.files or (moved and not patch.shared):
            return False
        row.add(patch, moved, progress)
    return row.apply(git, progress)


@dataclass
class _Row:
    """Patches for one git. What is placed by its context is known to progress only after it."""

    files: list[str] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    #: A file placed by its context, the blob that it finds, and its patch's part of ``after``.
    moved: list[tuple[FileDiff, str, dict[str, Entry | None]]] = field(default_factory=list)

    def must_come_before(self, patch: Patch, progress: PlacingProgress) -> bool:
        """Whether ``patch`` needs a blob that is not known, or not written, before the row is."""
        placed = {item.path for item, *_ in self.moved}
        return any(
            item.path in placed or (item.path in self.touched and not _is_made_for(item, progress))
            for item in patch.files
        )

    def add(self, patch: Patch, moved: Sequence[FileDiff], progress: PlacingProgress) -> None:
        found = [progress.entries.get(item.path) for item in moved]
        self.files.append(str(patch.path))
        self.touched |= {item.path for item in patch.files}
        _follow(patch, progress)
        for item, entry in zip(moved, found):
            self.moved.append((item, entry[1] if entry else "", progress.after[-1]))

    def apply(self, git: Git, progress: PlacingProgress) -> bool:
        if any(not blob or item.old_id is None for item, blob, _ in self.moved):
            return False
        blobs = read_blobs(git, [blob for _, blob, _ in self.moved])
        if any(_uncertain(item, blob) for (item, *_), blob in zip(self.moved, blobs)):
            return False
        if self.files and git.run(*_APPLY, *self.files, ok=(0, 1, 128)).status:
            return False
        there = read_index_at(git, [item.path for item, *_ in self.moved])
        for item, _, after in self.moved:
            after[item.path] = progress.entries[item.path] = there.get(item.path)
        return True


def apply_patch(git: Git, patch: Patch, progress: PlacingProgress) -> list[str]:
    """Apply ``patch`` to the index of ``git`` as far as it fits; one line for each problem."""
    if not patch.files:
        progress.after.append({})
        return [f"{patch.name}: holds no diff"]
    moved = [item for item in patch.files if not _is_made_for(item, progress)]
    problems = []
    for item in moved:
        problems += _misplaced(git, patch, item, progress.entries.get(item.path))
    result = git.run(*_APPLY, str(patch.path), ok=(0, 1, 128))
    if result.status:
        failed = _failed_hunks(patch, result.err, progress.broken)
        problems = failed or problems + [f"{patch.name}: {' '.join(result.err.split())}"]
        bad = {item.path for item in patch.files if f"{item.path}:" in result.err}
        # The files that do fit still go in, so that later patches are judged fairly.
        skip = [f"--exclude={_glob_escape(path)}" for path in sorted(bad)]
        if bad and len(bad) < len(patch.files):
            git.run(*_APPLY, *skip, str(patch.path), ok=(0, 1, 128))
        progress.broken.update({p: patch.name for p in bad if p not in progress.broken})
    _follow(patch, progress)
    if patch.shared and (moved or result.status):
        there = read_index_at(git, [item.path for item in patch.files])
        after = {item.path: there.get(item.path) for item in patch.files}
        progress.entries.update(after)
        progress.after[-1] = after
    return problems


_APPLY = ("apply", "--cached", "--whitespace=nowarn")


def _is_made_for(item: FileDiff, progress: PlacingProgress) -> bool:
    """Whether the file holds the blob that the diff was made for."""
    if item.path in progress.broken or (item.old_id is None and item.new_id is None):
        return True
    entry = progress.entries.get(item.path)
    return (entry[1] if entry else None) == item.old_id


def _misplaced(git: Git, patch: Patch, item: FileDiff, entry: Entry | None) -> list[str]:
    """Why ``item`` may not be placed in a blob that it was not made for; empty when it may."""
    if not patch.shared or entry is None or item.old_id is None:
        return [
            f"{patch.name}: {item.path}: made for blob {item.old_id or 'none'}, "
            f"but there it is {entry[1] if entry else 'missing'}"
        ]
    return [
        f"{patch.name}: {item.path}: hunk {number} of {len(item.hunks)}: its context occurs more "
        "than once there, so its place is not certain; --port-from gives the base its own patch"
        for number in _uncertain(item, *read_blobs(git, [entry[1]]))
    ]


def _uncertain(item: FileDiff, content: bytes) -> list[int]:
    """The hunks, counted from 1, whose context occurs more than once in ``content``."""
    return [
        number for number, hunk in enumerate(item.hunks, 1) if occurrences(content, hunk.before) > 1
    ]


def occurrences(content: bytes, lines: bytes) -> int:
    """How many times the whole ``lines`` stand in ``content``, overlaps counted."""
    text, wanted = b"\n" + content, b"\n" + lines
    count = at = 0
    while wanted != b"\n":
        at = text.find(wanted, at) + 1
        if at == 0:
            break
        # A last line without a newline must not match the start of a longer one.
        count += wanted.endswith(b"\n") or at - 1 + len(wanted) == len(text)
    return count


def _follow(patch: Patch, progress: PlacingProgress) -> None:
    """Note what the files of ``patch`` hold after it by its index lines.

    Also where it failed: later patches of the same folder are judged as if it had not.
    """
    after = {item.path: _after(progress.entries.get(item.path), item) for item in patch.files}
    progress.entries.update(after)
    progress.after.append(after)


def _after(last: Entry | None, item: FileDiff) -> Entry | None:
    mode = item.new_mode or (last[0] if last else "100644")
    if item.old_id is None and item.new_id is None:  # a mode change alone, or an empty file
        return (mode, last[1]) if last else None
    return (mode, item.new_id) if item.new_id is not None else None


def place(git: Git, patch: Patch, entries: Mapping[str, Entry | None]) -> Entries | None:
    """What ``patch`` makes of ``entries``, with its hunks placed by their context.

    None when it does not apply, or when the place of a hunk is not certain. ``entries`` are all
    files of ``patch``; the index of ``git`` is overwritten.
    """
    for item in patch.files:
        entry = entries.get(item.path)
        if entry is None or entry[1] == item.old_id:
            continue
        if _uncertain(item, *read_blobs(git, [entry[1]])):
            return None
    git.run("read-tree", "--empty")
    there = {name: entry for name, entry in entries.items() if entry is not None}
    git.run("update-index", "-z", "--index-info", stdin=index_info(there))
    if git.run(*_APPLY, str(patch.path), ok=(0, 1, 128)).status:
        return None
    return read_index_at(git, [item.path for item in patch.files])


def _failed_hunks(patch: Patch, err: str, broken: Mapping[str, str]) -> list[str]:
    by_path: dict[str, FileDiff] = {item.path: item for item in patch.files}
    problems: dict[str, str] = {}
    for line in err.splitlines():
        hunk, other = _FAILED.match(line), _FILE_ERROR.match(line)
        if hunk and hunk.group(1) in by_path:
            path, start = hunk.group(1), int(hunk.group(2))
            starts = [item.old_start for item in by_path[path].hunks]
            number = starts.index(start) + 1 if start in starts else 0
            where = f"hunk {number} of {len(starts)}" if number else "a hunk"
            problems[path] = f"{patch.name}: {path}: {where} (line {start}) does not apply"
        elif other and other.group(1) in by_path and other.group(1) not in problems:
            problems[other.group(1)] = f"{patch.name}: {other.group(1)}: {other.group(2)}"
    return [
        text + (f" (perhaps since {broken[path]} failed there)" if path in broken else "")
        for path, text in problems.items()
    ]


def _glob_escape(path: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", path)
