"""From an edited checkout back to patch/, overlay/ and result.json.

An edit of an upstream file belongs to the last patch that touches it, unless another is named;
new files and edited overlay files go to overlay/. The new series is built and proved to give
exactly the edited tree before one file of the project is written.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Sequence

from dsmoe.common.errors import ExportRefused, NotApplied, UsageError
from dsmoe.patchset.authoring.history import History, make_diff, read_history, take_edit, touching
from dsmoe.patchset.authoring.publish import Item, publish
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.actions import Outcome, found_line
from dsmoe.patchset.checkout.build import Built, build, lock_content
from dsmoe.patchset.checkout.open import Checkout, open_checkout, workspace
from dsmoe.patchset.checkout.records import Notes, Record, locked
from dsmoe.patchset.checkout.state import (
    APPLIED,
    APPLIED_EDITED,
    BASE_EDITED,
    PRISTINE,
    Situation,
    classify,
    describe_checkout,
    look,
)
from dsmoe.patchset.git import Git
from dsmoe.patchset.series import (
    Series,
    digest_of,
    is_junk,
    load_series,
    name_in,
    overlay_mode,
    read_patch,
)
from dsmoe.patchset.tree import (
    GITLINK,
    Change,
    Entries,
    Entry,
    diff_trees,
    index_info,
    make_tree,
    work_entries,
)

Say = Callable[[str], None]

SKELETON = b"""Description: TODO what this changes, in one short line
 TODO why, in a few lines.
Origin: TODO
Forwarded: TODO
X-Test: TODO tests/...::name

"""


@dataclass(frozen=True)
class Draft:
    """The series to be written: names and headers in order, histories, overlay changes."""

    names: list[str]
    headers: list[bytes]
    history: History
    overlay: dict[str, Entry | None]


def export(path: Path, bases: Sequence[Base], to: str | None = None, say: Say = print) -> Outcome:
    """Write the edits of the checkout at ``path`` into its base's series, overlay and lock.

    ``to`` names the patch that takes all edits of upstream files; a new name appends a patch.

    Raises:
        NotApplied: the present series is not applied there.
        ExportRefused: an edit has no patch to go to, or does not merge into the one named.
    """
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    series = load_series(checkout.base)
    with locked(checkout, say) as handle, workspace(checkout, dry=False) as scratch:
        git = scratch.using(lock_fd=handle)
        built = build(git, checkout, series)
        at = look(checkout, built)
        _require_applied(at, classify(at), path)
        changes = _changes(git, checkout, built.tree, say)
        draft = _draft(git, series, built.base_entries, changes, to)
        with tempfile.TemporaryDirectory(prefix="dsmoe-") as folder:
            new_series = _stage(git, series, draft, Path(folder))
            new = build(git, checkout, new_series)
            if new.tree != make_tree(git, {p: c[1] for p, c in changes.items()}, built.tree):
                raise ExportRefused("the exported series does not give the edited tree: a defect")
            items = _items(series, new_series, new)
            _refuse_shared(items, path)
            written = publish(series.base.series.parent, items)
        _renew_index(checkout.git.using(lock_fd=handle), checkout, new, changes)
        state = describe_checkout(checkout, new)
    lines = [("removed " if i.content is None else "wrote ") + str(i.target) for i in written]
    for line in lines:
        say(f"  {line}")
    message = f"exported: {len(written)} files" if written else "nothing to export"
    name = "exported" if written else "nothing-to-export"
    return Outcome(name, message, state, [str(item.target) for item in written], new.tops)


def _require_applied(at: Situation, name: str, path: Path) -> None:
    nothing = all(at.result.get(item) == at.base.get(item) for item in at.scope)
    if name in (APPLIED, APPLIED_EDITED) or (nothing and name in (PRISTINE, BASE_EDITED)):
        return
    raise NotApplied(
        f"{path} is {name}; --export needs the present series applied there: "
        f"python apply_patch.py {path}"
    )


def _changes(git: Git, checkout: Checkout, old: str, say: Say) -> dict[str, Change]:
    """What the work tree changes in tree ``old``: tracked files, and new ones git would show."""
    if git.index is None:
        raise ValueError("needs a temporary index")
    # The real index as a start keeps skip-worktree marks and what the user added by force.
    # Its time of change too: by it git knows which files were written too late to trust their size.
    shutil.copy2(checkout.git_dir / "index", git.index)
    git.run("-c", "advice.addEmbeddedRepo=false", "add", "-A", ".")
    edited = git.run("write-tree", "--missing-ok").text
    found: dict[str, Change] = {}
    for path, (before, after) in diff_trees(git, old, edited).items():
        modes = {entry[0] for entry in (before, after) if entry is not None}
        if GITLINK in modes:
            say(f"  left out (a repository of its own): {path}")
        elif before is not None or not is_junk(path):
            found[path] = (before, after)
    index: Entries = {path: change[1] for path, change in found.items() if change[1] is not None}
    work = work_entries(checkout.git, found, index)
    bent = [path for path, change in found.items() if work[path] != change[1]]
    if bent:
        raise ExportRefused(
            f"git attributes change the bytes of {len(bent)} edited files; remove them", bent
        )
    return found


def _draft(
    git: Git, series: Series, base: Entries, changes: dict[str, Change], to: str | None
) -> Draft:
    names = [patch.name for patch in series.patches]
    headers = [patch.header for patch in series.patches]
    history = read_history(series, base)
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


def _new_name(to: str, folder: Path) -> str:
    if Path(to).name != to or not to.endswith((".patch", ".diff")) or to.startswith((".", "-")):
        raise UsageError(f"--to {to}: a new patch is a plain file name that ends in .patch")
    if (folder / to).exists():
        raise UsageError(f"--to {to}: {folder / to} exists but is not in the series; list it there")
    return to


def _stage(git: Git, series: Series, draft: Draft, folder: Path) -> Series:
    """The new series, its patches and changed overlay files as files in ``folder``."""
    patches, overlay = [], dict(series.overlay)
    for number, (name, header) in enumerate(zip(draft.names, draft.headers)):
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
    items.append(Item(base.folder, base.result_file.name, lock_content(new, built)))
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
            f"patch of its own: python apply_patch.py {path} --export --to NAME.patch",
            changed,
        )


def _series_text(path: Path, kept: list[str]) -> bytes:
    lines = path.read_text(encoding="utf-8").splitlines()
    named: list[tuple[str, str]] = [(line, line.split("#", 1)[0].strip()) for line in lines]
    text = [line for line, name in named if not name or name in kept]
    present = {name for _, name in named}
    return ("\n".join(text + [name for name in kept if name not in present]) + "\n").encode()


def _renew_index(git: Git, checkout: Checkout, new: Built, changes: dict[str, Change]) -> None:
    """The edits are the series now: the index and the record must say so."""
    if changes:
        entries = {path: change[1] for path, change in changes.items()}
        git.run("update-index", "-z", "--index-info", stdin=index_info(entries))
        git.run("update-index", "-q", "--refresh", ok=(0, 1))
    notes = Notes(checkout.private)
    if not new.changes:
        notes.clear(notes.applied)
        return
    after = {path: change[1] for path, change in new.changes.items()}
    before = {path: change[0] for path, change in new.changes.items()}
    notes.write(notes.applied, Record("applied", new.digest, before, after))
