"""From an edited checkout back to patch/, overlay/ and result.json.

An edit of an upstream file belongs to the last patch that touches it, unless another is named;
new files and edited overlay files go to overlay/. The new series is built and proved to give
exactly the edited tree before one file of the project is written.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Mapping, Sequence

from dsmoe.common.errors import ExportRefused, NotApplied, UsageError
from dsmoe.common.typed import program
from dsmoe.patchset.authoring.history import History, make_diff, read_history, take_edit, touching
from dsmoe.patchset.authoring.publish import Item, publish
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.actions import ActionResult, found_line
from dsmoe.patchset.checkout.build import Built, build
from dsmoe.patchset.checkout.lock import locked
from dsmoe.patchset.checkout.open import Checkout, need_base, open_checkout, workspace
from dsmoe.patchset.checkout.renewal import announce, finish_export, renew
from dsmoe.patchset.checkout.situation import (
    APPLIED,
    APPLIED_EDITED,
    BASE_EDITED,
    PRISTINE,
    Situation,
    classify,
    look,
)
from dsmoe.patchset.checkout.state import describe_checkout
from dsmoe.patchset.git import Git
from dsmoe.patchset.locked_result import result_content
from dsmoe.patchset.overlay import is_junk, overlay_mode
from dsmoe.patchset.patch_file import Patch, read_patch
from dsmoe.patchset.placing import place
from dsmoe.patchset.series import (
    Series,
    digest_of,
    finish_exports,
    load_series,
    name_in,
    series_lines,
)
from dsmoe.patchset.tree import (
    GITLINK,
    IN_THE_WAY,
    Change,
    Entry,
    hash_files,
    local_entries,
    make_tree,
    read_index,
    read_tree,
)

Say = Callable[[str], None]

SKELETON = b"""Description: TODO what this changes, in one short line
 TODO why, in a few lines.
Origin: TODO
Forwarded: TODO
Still-Needed: TODO which release needs it too (dsmoe defects --against PYTHON)
X-Test: TODO tests/...::name

"""


@dataclass(frozen=True)
class Draft:
    """The series to be written: names and headers in order, histories, overlay changes."""

    names: list[str]
    headers: list[bytes]
    history: History
    overlay: dict[str, Entry | None]


def export(
    path: Path, bases: Sequence[Base], to: str | None = None, say: Say = print
) -> ActionResult:
    """Write the edits of the checkout at ``path`` into its base's series, overlay and lock.

    ``to`` names the patch that takes all edits of upstream files; a new name appends a patch.

    Raises:
        NotApplied: the present series is not applied there.
        ExportRefused: an edit has no patch to go to, or does not merge into the one named.
    """
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    need_base(checkout)
    finish_exports(checkout.base)
    series = load_series(checkout.base)
    with locked(checkout, say) as handle, workspace(checkout, dry=False) as scratch:
        git = scratch.using(lock_fd=handle)
        built = build(git, checkout, series)
        if finish_export(checkout, built, handle):
            say("an earlier export was stopped half-way: completed")
        at = look(checkout, built)
        _require_applied(at, classify(at), path)
        changes = _changes(checkout, read_tree(git, built.tree), say)
        draft = _draft(git, series, built, changes, to)
        with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
            new_series = _stage(git, series, draft, Path(folder))
            new = build(git, checkout, new_series)
            if new.tree != make_tree(git, {p: c[1] for p, c in changes.items()}, built.tree):
                raise ExportRefused(
                    "the exported series does not give the edited tree; this is a bug"
                )
            items = _items(series, new_series, new)
            _refuse_shared(items, path)
            edits = {path: change[1] for path, change in changes.items()}
            announce(checkout, new, edits)
            written = publish(series.base.series.parent, items)
        renew(checkout.git.using(lock_fd=handle), checkout, new, edits)
        state = describe_checkout(checkout, new)
    lines = [("removed " if i.content is None else "wrote ") + str(i.target) for i in written]
    for line in lines:
        say(f"  {line}")
    message = f"exported: {len(written)} files" if written else "nothing to export"
    name = "exported" if written else "nothing-to-export"
    return ActionResult(name, message, state, [str(item.target) for item in written], new.tops)


def _require_applied(at: Situation, name: str, path: Path) -> None:
    nothing = all(at.result.get(item) == at.base.get(item) for item in at.scope)
    if name in (APPLIED, APPLIED_EDITED) or (nothing and name in (PRISTINE, BASE_EDITED)):
        return
    raise NotApplied(
        f"{path} is {name}; --export needs the present series applied there: "
        f"{program('apply')} {path}"
    )


def _changes(checkout: Checkout, old: Mapping[str, Entry], say: Say) -> dict[str, Change]:
    """What the work tree changes in the files of ``old``; new files are those git would show.

    The bytes are taken raw: neither a filter nor an attribute has a say.
    """
    git = checkout.git
    now: dict[str, Entry | None] = {**read_index(git), **local_entries(git)}
    found: dict[str, Change] = {}
    for path in sorted({*old, *now}):
        before, after = old.get(path), now.get(path)
        if before == after:
            continue
        modes = {entry[0] for entry in (before, after) if entry is not None}
        if GITLINK in modes or path.endswith("/"):
            say(f"  left out (a repository of its own): {path}")
        elif before is not None or not is_junk(path):
            found[path] = (before, None if after == IN_THE_WAY else after)
    _store(git, {path: change[1] for path, change in found.items() if change[1] is not None})
    return found


def _store(git: Git, entries: Mapping[str, Entry]) -> None:
    """Put the content of these files into the object database."""
    hash_files(git, [path for path, entry in entries.items() if entry[0] != "120000"], write=True)
    for path in (path for path, entry in entries.items() if entry[0] == "120000"):
        target = os.fsencode(os.readlink(git.path / path))
        git.run("hash-object", "-w", "--stdin", stdin=target)


def _draft(
    git: Git, series: Series, built: Built, changes: dict[str, Change], to: str | None
) -> Draft:
    base = built.base_entries
    names = [patch.name for patch in series.patches]
    headers = [patch.header for patch in series.patches]
    history = read_history(series, built)
    upstream = {p: c for p, c in changes.items() if p in base or p in history}
    chosen = None
    if to is not None:
        chosen = name_in(names, to)
        if chosen is None and upstream:
            names.append(_new_name(to, series.base.series.parent))
            headers.append(SKELETON)
            chosen = len(names) - 1
            for states in history.values():
                states.append(states[-1])
    homeless = [p for p in upstream if chosen is None and not touching(history, p)]
    if homeless:
        raise ExportRefused(
            f"{len(homeless)} edited files belong to no patch; name one: --export --to NAME.patch",
            homeless,
        )
    for path, change in upstream.items():
        history.setdefault(path, [base.get(path)] * (len(names) + 1))
        patch = touching(history, path)[-1] if chosen is None else chosen
        take_edit(git, history, names, path, change, patch)
    overlay = {p: c[1] for p, c in changes.items() if p not in upstream}
    links = [p for p, entry in overlay.items() if entry is not None and entry[0] == "120000"]
    if links:
        raise ExportRefused("the overlay holds plain files, not symbolic links", links)
    return Draft(names, headers, history, overlay)


# What a series, a shell and every file system take as it is.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}\.(patch|diff)")


def _new_name(to: str, folder: Path) -> str:
    if not _NAME.fullmatch(to):
        raise UsageError(
            f"--to {to[:200]!r}: expected a plain file name that ends in .patch, of at most 120 "
            "letters, digits and . _ + -"
        )
    if os.path.lexists(folder / to):
        raise UsageError(f"--to {to}: {folder / to} exists but is not in the series; list it there")
    return to


def _stage(git: Git, series: Series, draft: Draft, folder: Path) -> Series:
    """The new series, its patches and changed overlay files as files in ``folder``."""
    patches: list[Patch] = []
    overlay = dict(series.overlay)
    for number, (name, header) in enumerate(zip(draft.names, draft.headers)):
        if number < len(series.patches) and _stays(git, series.patches[number], draft, number):
            patches.append(series.patches[number])
            continue
        diff = make_diff(git, draft.history, number)
        if diff:
            file = folder / f"{number}.diff"
            file.write_bytes(header + diff)
            patches.append(read_patch(file, name))
    for number, (path, entry) in enumerate(draft.overlay.items()):
        overlay.pop(path, None)
        if entry is not None:
            file = folder / f"{number}.overlay"
            file.write_bytes(git.run("cat-file", "blob", entry[1]).out)
            file.chmod(0o755 if entry[0] == "100755" else 0o644)
            overlay[path] = file
    overlay = dict(sorted(overlay.items()))
    return replace(
        series,
        patches=tuple(patches),
        overlay=overlay,
        digest=digest_of(series.base, patches, overlay),
    )


def _stays(git: Git, patch: Patch, draft: Draft, number: int) -> bool:
    """Whether a shared patch, as it is, still makes the step that the draft asks for."""
    if not patch.shared:
        return False
    steps = {path: states[number : number + 2] for path, states in draft.history.items()}
    paths = [item.path for item in patch.files]
    if any(before != after for path, (before, after) in steps.items() if path not in paths):
        return False
    wanted = {path: steps[path][1] for path in paths if steps[path][1] is not None}
    return place(git, patch, {path: steps[path][0] for path in paths}) == wanted


def _items(old: Series, new: Series, built: Built) -> list[Item]:
    """The project's files as the new series has them."""
    base, folder = old.base, old.base.series.parent
    items = [Item(folder, p.name, p.header + p.diff) for p in new.patches]
    for path in sorted(set(old.overlay) | set(new.overlay)):
        source, target = new.overlay.get(path), old.overlay.get(path)
        if source == target:
            continue
        root = base.overlays[-1] if target is None else target.parents[path.count("/")]
        content = None if source is None else source.read_bytes()
        mode = 0o755 if source is not None and overlay_mode(source) == "100755" else 0o644
        items.append(Item(root, path, content, mode))
    kept = [patch.name for patch in new.patches]
    gone = [patch.name for patch in old.patches if patch.name not in kept]
    items += [Item(folder, name, None) for name in gone]
    if kept != [patch.name for patch in old.patches]:
        items.append(Item(folder, base.series.name, _series_text(base.series, kept)))
    content = result_content(base, built.digest, built.tops)
    items.append(Item(base.folder, base.result_file.name, content))
    return items


def _refuse_shared(items: Sequence[Item], path: Path) -> None:
    """A patch that is named in another folder belongs to the base there."""
    shared = [str(item.path) for item in items if "/" in item.path and item.path.endswith(".patch")]
    shared = [name for name in shared if name.startswith("../")]
    changed = [i.path for i in items if i.path in shared and not i.is_there()]
    if changed:
        raise ExportRefused(
            f"{len(changed)} patches are shared with the base whose folder they are in; edit its "
            "checkout and carry the series over (docs/reference/bases.md), or give the edit a "
            f"patch of its own: {program('apply')} {path} --export --to NAME.patch",
            changed,
        )


def _series_text(path: Path, kept: list[str]) -> bytes:
    lines = series_lines(path)
    named: list[tuple[str, str]] = [(line, line.split("#", 1)[0].strip()) for line in lines]
    text = [line for line, name in named if not name or name in kept]
    present = {name for _, name in named}
    return ("\n".join(text + [name for name in kept if name not in present]) + "\n").encode()
