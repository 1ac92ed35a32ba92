"""The result of a series on a base, built in the object database alone.

Every patch that does not fit is reported, not the first alone (:mod:`dsmoe.patchset.placing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

from dsmoe.common.errors import SeriesBroken
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.git import Git
from dsmoe.patchset.overlay import overlay_content, overlay_mode
from dsmoe.patchset.placing import PlacingProgress, apply_patch, apply_together
from dsmoe.patchset.series import Series
from dsmoe.patchset.tree import (
    Change,
    Entries,
    Entry,
    diff_trees,
    hash_files,
    index_info,
    read_tops,
    read_tree,
)


@dataclass(frozen=True)
class Built:
    """A result: its root tree, what it changes, and the ids of the top folders it touches.

    ``steps`` has, for each patch of the series, the entries of its files after it.
    """

    tree: str
    base_entries: Entries
    changes: dict[str, Change]
    tops: dict[str, str]
    digest: str
    steps: list[dict[str, Entry | None]] = field(default_factory=list)


def build(git: Git, checkout: Checkout, series: Series) -> Built:
    """Apply ``series`` to HEAD's tree in the temporary index of ``git``.

    Raises:
        SeriesBroken: with one detail line a patch, file and hunk that does not fit.
    """
    base_entries = read_tree(git, checkout.tree)
    git.run("read-tree", checkout.tree)
    problems: list[str] = []
    progress = PlacingProgress(dict(base_entries))
    if not apply_together(git, series.patches, progress):
        git.run("read-tree", checkout.tree)
        progress = PlacingProgress(dict(base_entries))
        for patch in series.patches:
            problems += apply_patch(git, patch, progress)
    problems += _add_overlay(git, series, base_entries, progress.entries)
    if problems:
        raise SeriesBroken(
            f"the series {series.base.series} does not fit {checkout.base.name}: "
            f"{len(problems)} problems, nothing was changed",
            problems,
        )
    tree = git.run("write-tree", "--missing-ok").text
    changes = diff_trees(git, checkout.tree, tree)
    touched = {path.split("/")[0] for path in changes}
    for top in sorted(touched):
        if top in checkout.tops and top not in series.base.trees:
            problems.append(f"{top}: base.json records no id for this top-level entry")
    if problems:
        raise SeriesBroken("the series touches what the base does not pin", problems)
    tops = {top: oid for top, oid in read_tops(git, tree).items() if top in touched}
    return Built(tree, base_entries, changes, tops, series.digest, progress.after)


def _add_overlay(
    git: Git, series: Series, base: Entries, state: Mapping[str, Entry | None]
) -> list[str]:
    patched = {item.path for patch in series.patches for item in patch.files}
    problems, plain, entries = [], [], {}
    for path, source in series.overlay.items():
        if path in base or path in patched:
            owner = "DeepSpeed's own file" if path in base else "a file of a patch"
            problems.append(f"overlay {path}: would replace {owner}; make it a patch")
        elif any(part in state and state[part] for part in _parents(path)):
            problems.append(f"overlay {path}: a file stands where it needs a folder")
        elif source.is_symlink():
            oid = git.run("hash-object", "-w", "--stdin", stdin=overlay_content(source)).text
            entries[path] = ("120000", oid)
        else:
            plain.append(path)
    sources = [series.overlay[path] for path in plain]
    for path, source, oid in zip(plain, sources, hash_files(git, list(map(str, sources)), True)):
        entries[path] = (overlay_mode(source), oid)
    if entries and not problems:
        git.run("update-index", "-z", "--index-info", stdin=index_info(entries))
    return problems


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
