"""Carrying the series of one base over to another base.

A patch is a step for each file: its content before and after. Where the target base has the same
content before, the step is the same. Any other step is merged three-way onto the target's content.
A patch whose hunks, placed by their context, make exactly these steps on the target is shared:
the target's series names the file of the source's folder. Any other patch is written into the
target's folder under the source's header.

Where a step does not merge, the target's own patch of that name is the resolution if it applies;
else the edited form of a file with conflict markers that an earlier run has put into a folder;
else the source's patch, if the context of each hunk gives it one place. Two things of the target
are kept: patches with the header field ``X-Port`` (made by hand; those of a name that the source
has not come first, in their order), and lines of its series of the form
``# without NAME.patch: reason``.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Optional, Sequence, Tuple

from dsmoe.common.errors import SeriesBroken, UsageError
from dsmoe.patchset.authoring.history import (
    History,
    make_diff,
    merge_contents,
    read_blob,
    read_history,
)
from dsmoe.patchset.authoring.publish import Item, publish
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.actions import ActionResult, found_line
from dsmoe.patchset.checkout.build import Built, build
from dsmoe.patchset.checkout.open import need_base, open_checkout, workspace
from dsmoe.patchset.checkout.state import describe_checkout
from dsmoe.patchset.git import Git
from dsmoe.patchset.locked_result import result_content
from dsmoe.patchset.patch_file import Patch, read_patch
from dsmoe.patchset.placing import place
from dsmoe.patchset.series import (
    Series,
    digest_of,
    finish_exports,
    load_series,
    read_names,
    series_lines,
)
from dsmoe.patchset.tree import Entries, Entry, index_info, read_index_at, read_tree

Say = Callable[[str], None]
Content = Optional[Tuple[str, bytes]]  # the mode and the bytes; None: no such file
Step = Tuple[Content, Content]
_WITHOUT = re.compile(r"^#\s*without\s+(\S+?):?\s")
_MARKERS = (b"<<<<<<< ", b">>>>>>> ")


@dataclass
class _Carrier:
    """The series that grows on the target: histories, names, patches; and what went wrong."""

    git: Git
    base: Base
    entries: Entries
    conflicts: Path
    scratch: Path
    history: History = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unmerged: bytes | None = None

    def take_own(self, name: str) -> None:
        """Append the target's own patch ``name``, as it is."""
        own = read_patch(self.base.series.parent / name, name)
        self._by_hand(own, own)

    def take(self, patch: Patch, steps: dict[str, Step]) -> None:
        """Append ``patch`` of the source series, shared or carried over."""
        own = self._own(patch)
        if own is not None and _by_hand(own):
            self._by_hand(patch, own)
            return
        before = self._begin(list(steps))
        entries = {path: self.history[path][-1] for path in steps}
        shared = replace(patch, name=os.path.relpath(patch.path, self.base.series.parent))
        placed = place(self.git, shared, entries)
        for path, step in steps.items():
            if path in self.stuck:  # what comes after a conflict cannot be judged
                continue
            if before[path] == step[0]:
                self.history[path][-1] = self._store(step[1])
                continue
            content = self._merge(patch, path, step, before[path])
            content = content or self._apply(own, path) or self._edited(patch, path)
            if content is None and placed is not None:
                content = self._read(placed.get(path))
            self._end(patch, path, content)
        after = {path: self.history[path][-1] for path in steps}
        if placed == {path: entry for path, entry in after.items() if entry is not None}:
            self._append(shared.name, patch)
        else:
            self._write(patch.name, patch.header)

    def _by_hand(self, patch: Patch, own: Patch) -> None:
        paths = [item.path for item in own.files]
        self._begin(paths)
        for path in (path for path in paths if path not in self.stuck):
            self._end(patch, path, self._apply(own, path))
        self._write(own.path.name, own.header)

    def _begin(self, paths: list[str]) -> dict[str, Content]:
        """The contents of ``paths`` before a patch; a new step, as yet without a change."""
        before = {path: self._now(path) for path in paths}
        for states in self.history.values():
            del states[:-1]
            states.append(states[-1])
        return before

    def _end(self, patch: Patch, path: str, content: Content) -> None:
        if content is None:
            place = self.conflicts / patch.name / path
            if self.unmerged is not None and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self.unmerged)
            self.problems.append(f"{patch.name}: {path}: does not merge")
            self.stuck.append(path)
            return
        self.history[path][-1] = self._store(content)

    def _write(self, name: str, header: bytes) -> None:
        diff = make_diff(self.git, self.history, 0)
        if diff:
            file = self.scratch / f"{len(self.names)}.diff"
            file.write_bytes(header + diff)
            self._append(name, read_patch(file, name))

    def _append(self, name: str, patch: Patch) -> None:
        self.names.append(name)
        self.patches.append(replace(patch, name=name))

    def _own(self, patch: Patch) -> Patch | None:
        path = self.base.series.parent / patch.name
        return read_patch(path) if path.is_file() else None

    def _now(self, path: str) -> Content:
        return self._read(self.history.setdefault(path, [self.entries.get(path)])[-1])

    def _read(self, entry: Entry | None) -> Content:
        return (entry[0], read_blob(self.git, entry[1])) if entry else None

    def _store(self, content: Content) -> tuple[str, str] | None:
        if content is None:
            return None
        args = ("hash-object", "-w", "--no-filters", "--stdin")
        return content[0], self.git.run(*args, stdin=content[1]).text

    def _merge(self, patch: Patch, path: str, step: Step, now: Content) -> Content:
        self.unmerged = None
        old, new = step
        if now is None or old is None or new is None:
            return None
        merged, clean = merge_contents(self.git, now[1], old[1], new[1])
        if clean:
            return (now[0] if old[0] == new[0] else new[0]), merged
        self.unmerged = merged
        return None

    def _apply(self, own: Patch | None, path: str) -> Content:
        """What the target's own patch makes of the content at ``path``; moved hunks are allowed."""
        if own is None or path not in {item.path for item in own.files}:
            return None
        entry = self.history[path][-1]
        self.git.run("read-tree", "--empty")
        self.git.run("update-index", "-z", "--index-info", stdin=index_info({path: entry}))
        args = ("apply", "--cached", "--whitespace=nowarn", f"--include={path}", str(own.path))
        if self.git.run(*args, ok=(0, 1, 128)).status:
            return None
        return self._read(read_index_at(self.git, [path]).get(path))

    def _edited(self, patch: Patch, path: str) -> Content:
        place = self.conflicts / patch.name / path
        entry = self.history[path][-1]
        if not place.is_file() or entry is None:
            return None
        data = place.read_bytes()
        return None if any(mark in data for mark in _MARKERS) else (entry[0], data)


def port(source: Path, target: Path, bases: Sequence[Base], say: Say = print) -> ActionResult:
    """Rewrite the series and the lock of ``target``'s base from the series of ``source``'s base.

    Both are checkouts, and are only read. Conflicts go to ``TARGET.conflicts/PATCH/FILE``.

    Raises:
        SeriesBroken: steps that neither merge nor have a resolution, each in ``details``;
            no file of the project is written then.
    """
    origin, goal = open_checkout(source, bases), open_checkout(target, bases)
    say(found_line(goal))
    for checkout in (origin, goal):
        need_base(checkout)
        finish_exports(checkout.base)
    if origin.base.name == goal.base.name:
        raise UsageError(f"{source} and {target} are both {goal.base.name}: nothing to carry over")
    wanted = load_series(origin.base)
    with workspace(origin, dry=True) as git:
        steps = _read_steps(git, build(git, origin, wanted), wanted)
    conflicts = target.parent / f"{target.name}.conflicts"
    omitted = _omitted(goal.base)
    with workspace(goal, dry=True) as git, tempfile.TemporaryDirectory(prefix="dsmoe-") as scratch:
        carrier = _Carrier(git, goal.base, read_tree(git, goal.tree), conflicts, Path(scratch))
        for name in _only_here(goal.base, {patch.name for patch in wanted.patches}):
            carrier.take_own(name)
        for patch in wanted.patches:
            if patch.name not in omitted:
                carrier.take(patch, steps[patch.name])
        if carrier.problems:
            raise SeriesBroken(
                f"{len(carrier.problems)} steps of {origin.base.name} do not merge into "
                f"{goal.base.name}; edit the files in {conflicts} and repeat",
                carrier.problems,
            )
        overlay = load_series(replace(goal.base, series=origin.base.series)).overlay
        digest = digest_of(goal.base, carrier.patches, overlay)
        series = Series(goal.base, tuple(carrier.patches), overlay, digest)
        built = build(git, goal, series)
        written = publish(goal.base.series.parent, _items(goal.base, carrier, series, built))
        state = replace(describe_checkout(goal, built), edited=[])  # only read here
    for item in written:
        say(("  removed " if item.content is None else "  wrote ") + str(item.target))
    own = sum(1 for name in carrier.names if "/" not in name)
    shared = len(carrier.names) - own
    message = f"{shared} patches shared with {origin.base.name}, {own} of {goal.base.name}'s own"
    changed = [str(item.target) for item in written]
    return ActionResult(
        "ported" if written else "nothing-to-port", message, state, changed, built.tops
    )


def _read_steps(git: Git, built: Built, series: Series) -> dict[str, dict[str, Step]]:
    history = read_history(series, built)
    found: dict[str, dict[str, Step]] = {}
    for number, patch in enumerate(series.patches):
        found[patch.name] = {}
        for item in patch.files:
            pair = history[item.path][number : number + 2]
            old, new = ((e[0], read_blob(git, e[1])) if e else None for e in pair)
            found[patch.name][item.path] = (old, new)
    return found


def _omitted(base: Base) -> set[str]:
    if not base.series.is_file():
        return set()
    lines = series_lines(base.series)
    return {match.group(1) for match in map(_WITHOUT.match, lines) if match}


def _only_here(base: Base, names: set[str]) -> list[str]:
    found = read_names(base.series) if base.series.is_file() else []
    ours = [name for name in found if "/" not in name and name not in names]
    return [name for name in ours if _by_hand(read_patch(base.series.parent / name))]


def _by_hand(patch: Patch) -> bool:
    return b"\nX-Port:" in patch.header


def _items(base: Base, carrier: _Carrier, series: Series, built: Built) -> list[Item]:
    folder, names = base.series.parent, carrier.names
    own = [(name, patch) for name, patch in zip(names, carrier.patches) if "/" not in name]
    items = [Item(folder, name, patch.header + patch.diff) for name, patch in own]
    comments: list[str] = []
    if base.series.is_file():
        for old in read_names(base.series):
            if old not in names and "/" not in old:
                items.append(Item(folder, old, None))
        lines = series_lines(base.series)
        comments = [line for line in lines if line.startswith("#")]
    text = "\n".join(comments + names) + "\n"
    items.append(Item(folder, base.series.name, text.encode()))
    content = result_content(base, built.digest, built.tops)
    items.append(Item(base.folder, base.result_file.name, content))
    return items
