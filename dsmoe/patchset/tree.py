"""File lists as git sees them: trees, the index, and the raw bytes of the work tree.

An entry is ``(mode, blob id)`` as in ``git ls-tree``; a mapping of paths to entries is a file
list. Work tree files are hashed raw: neither git's stat cache nor a filter is trusted.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple

from dsmoe.common.errors import LocalChanges
from dsmoe.patchset.git import Git

Entry = Tuple[str, str]
Entries = Dict[str, Entry]
Change = Tuple[Optional[Entry], Optional[Entry]]

IN_THE_WAY: Entry = ("in the way", "")  # a folder, a link above the path, a device
GITLINK = "160000"


def read_tree(git: Git, tree: str) -> Entries:
    """All files of a tree or commit."""
    return _parse(git.run("ls-tree", "-r", "-z", "--full-tree", tree).out, kind=1, oid=2)


def read_tops(git: Git, tree: str) -> dict[str, str]:
    """Id of every top-level entry of a tree."""
    entries = _parse(git.run("ls-tree", "-z", "--full-tree", tree).out, kind=1, oid=2)
    return {path: entry[1] for path, entry in entries.items()}


def _parse(out: bytes, kind: int, oid: int) -> Entries:
    found: Entries = {}
    for record in out.split(b"\0"):
        if record:
            meta, path = record.split(b"\t", 1)
            words = meta.decode().split()
            found[os.fsdecode(path)] = (words[0], words[oid])
    return found


def read_index(git: Git) -> Entries:
    """The index; ``LocalChanges`` when a merge left it with conflicts."""
    found: Entries = {}
    conflicts = []
    for record in git.run("ls-files", "-s", "-z").out.split(b"\0"):
        if record:
            meta, path = record.split(b"\t", 1)
            mode, oid, stage = meta.decode().split()
            if stage != "0":
                conflicts.append(os.fsdecode(path))
            found[os.fsdecode(path)] = (mode, oid)
    if conflicts:
        names = sorted(set(conflicts))
        raise LocalChanges(
            f"{len(names)} files in {git.path} are in an unfinished merge; finish or abort it",
            names,
        )
    return found


def skipped(git: Git) -> set[str]:
    """The files that the index marks skip-worktree: git does not look for them on disk."""
    records = git.run("ls-files", "-t", "-z").out.split(b"\0")
    return {os.fsdecode(record[2:]) for record in records if record.startswith(b"S ")}


def read_index_at(git: Git, paths: Sequence[str]) -> Entries:
    """The entries of the index at ``paths``; those that it lacks are left out."""
    if not paths:
        return {}
    args = ("ls-files", "-s", "-z", "--", *paths)
    out = git.run(*args, env={"GIT_LITERAL_PATHSPECS": "1"}).out
    return _parse(out, kind=0, oid=1)


def read_blobs(git: Git, ids: Sequence[str]) -> list[bytes]:
    """The contents of blobs, by one git. Raises GitFailed where one is missing."""
    out = git.run("cat-file", "--batch", stdin="\n".join(ids).encode()).out if ids else b""
    found = []
    for oid in ids:
        head, _, out = out.partition(b"\n")
        words = head.split()
        if len(words) != 3:
            git.run("cat-file", "blob", oid)  # in git's own words
        size = int(words[-1])
        found.append(out[:size])
        out = out[size + 1 :]
    return found


def diff_trees(git: Git, old: str, new: str) -> dict[str, Change]:
    """Path -> (entry before, entry after) of every file that differs between two trees."""
    out = git.run("diff-tree", "-r", "-z", "--no-renames", "--raw", old, new).out
    fields = out.split(b"\0")
    changes: dict[str, Change] = {}
    for at in range(0, len(fields) - 1, 2):
        old_mode, new_mode, old_id, new_id, _ = fields[at].decode().lstrip(":").split()
        before = (old_mode, old_id) if old_id.strip("0") else None
        after = (new_mode, new_id) if new_id.strip("0") else None
        changes[os.fsdecode(fields[at + 1])] = (before, after)
    return changes


def work_entries(
    git: Git, paths: Iterable[str], index: Mapping[str, Entry]
) -> dict[str, Entry | None]:
    """What stands in the work tree at ``paths``: an entry, None, or ``IN_THE_WAY``."""
    found: dict[str, Entry | None] = {}
    regular: list[str] = []
    filemode = git.run("config", "--bool", "core.fileMode", ok=(0, 1)).text != "false"
    for path in paths:
        mode = _work_mode(git.path, path)
        if mode is None or mode == IN_THE_WAY[0]:
            found[path] = IN_THE_WAY if mode else None
        elif mode == "120000":
            target = os.fsencode(os.readlink(git.path / path))
            found[path] = (mode, git.run("hash-object", "--stdin", stdin=target).text)
        else:
            if not filemode and path in index and index[path][0].startswith("100"):
                mode = index[path][0]  # this file system keeps no executable bit
            found[path] = (mode, "")
            regular.append(path)
    for path, oid in zip(regular, hash_files(git, regular)):
        entry = found[path]
        found[path] = (entry[0] if entry else "", oid)
    return found


def hash_files(git: Git, paths: Sequence[str], write: bool = False) -> list[str]:
    """The blob ids of the raw bytes of ``paths`` (relative to the work tree, or absolute)."""
    if not paths:
        return []
    args = ("hash-object", "--no-filters", "--stdin-paths", *(["-w"] if write else []))
    return git.run(*args, stdin=b"".join(_line(path) for path in paths)).text.split()


def _line(path: str) -> bytes:
    """A line of input that names ``path``; in C's quotes where it could be misread."""
    name = os.fsencode(path)
    if b"\n" not in name and b"\r" not in name and not name.startswith(b'"'):
        return name + b"\n"
    return b'"' + b"".join(b"\\%03o" % byte for byte in name) + b'"\n'


def local_entries(git: Git) -> dict[str, Entry | None]:
    """The tracked files whose bytes are not the index's, and the untracked ones git would show.

    Path -> what stands there. The bytes are compared raw: no filter or attribute has a say. Files
    of submodules are not looked at.
    """
    args = ("diff-files", "--raw", "-z", "--no-renames", "--ignore-submodules=all")
    fields = git.run(*args).out.split(b"\0")
    tracked = [os.fsdecode(path) for path in fields[1::2]]
    out = git.run("ls-files", "-o", "--exclude-standard", "-z").out
    others = [os.fsdecode(path) for path in out.split(b"\0") if path]
    index = read_index_at(git, tracked) if len(tracked) < 1000 else read_index(git)
    work = work_entries(git, dict.fromkeys([*tracked, *others]), index)
    return {
        path: work[path]
        for path in work
        if index.get(path, ("", ""))[0] != GITLINK and work[path] != index.get(path)
    }


def _work_mode(root: Path, path: str) -> str | None:
    parts = path.split("/")
    for depth in range(1, len(parts)):
        parent = root.joinpath(*parts[:depth])
        if parent.is_symlink():
            return IN_THE_WAY[0]
        if not parent.is_dir():
            return IN_THE_WAY[0] if parent.exists() else None
    try:
        mode = (root / path).lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        return "120000"
    if not stat.S_ISREG(mode):
        return IN_THE_WAY[0]
    return "100755" if mode & stat.S_IXUSR else "100644"


def index_info(entries: Mapping[str, Entry | None]) -> bytes:
    """Input of ``git update-index -z --index-info`` that sets (None: removes) these paths."""
    records = []
    # Removals first: a file may make room for a folder of the same name.
    for path, entry in sorted(entries.items(), key=lambda item: (item[1] is not None, item[0])):
        mode, oid = entry if entry is not None else ("0", "0" * 40)
        records.append(f"{mode} {oid}\t{path}\0")
    return os.fsencode("".join(records))


def make_tree(git: Git, entries: Mapping[str, Entry | None], start: str | None = None) -> str:
    """Write the tree that holds ``start`` (default: nothing) with ``entries`` set; its id.

    ``git`` must have a temporary index.
    """
    if git.index is None:
        raise ValueError("make_tree needs a temporary index")
    git.run("read-tree", start if start is not None else "--empty")
    git.run("update-index", "-z", "--index-info", stdin=index_info(entries))
    return git.run("write-tree", "--missing-ok").text
