"""Moving index and work tree from one known content to another, safely against kills.

The steps follow from what is there now: every path that must change has to hold a content that
the applier itself puts there, or the move is refused before anything is written. A journal is
written first and removed last. The plain case is git's two-way ``read-tree -m -u``, which guards
local changes once more; from a mixed state (a killed move) each path is written on its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Mapping

from dsmoe.common.errors import DsmoeError, GitFailed, LocalChanges
from dsmoe.common.files import remove_file
from dsmoe.patchset.checkout.build import Built
from dsmoe.patchset.checkout.lock import clear_stale_index_lock
from dsmoe.patchset.checkout.open import Checkout, workspace
from dsmoe.patchset.checkout.records import Record, Records
from dsmoe.patchset.checkout.situation import (
    APPLIED_EDITED,
    PARTLY,
    Situation,
    classify,
    look,
    torn,
)
from dsmoe.patchset.checkout.state import edits
from dsmoe.patchset.git import Git
from dsmoe.patchset.tree import IN_THE_WAY, Entry, index_info, make_tree, work_entries


@dataclass(frozen=True)
class Steps:
    """Paths to change, with what they hold now and what they must hold."""

    before: dict[str, Entry | None]
    after: dict[str, Entry | None]
    uniform: bool


def plan_steps(checkout: Checkout, at: Situation, target: Mapping[str, Entry | None]) -> Steps:
    """What has to change to reach ``target`` on the paths in scope.

    Raises:
        LocalChanges: some of these paths hold edits or untracked files; all are listed.
    """
    before: dict[str, Entry | None] = {}
    after: dict[str, Entry | None] = {}
    blocked: dict[str, str] = {}
    name = classify(at)
    settling = at.journal is not None or name == PARTLY
    onto_result = name == APPLIED_EDITED and all(target[p] == at.result.get(p) for p in at.scope)
    uniform = True
    for path in at.scope:
        want, work, index = target.get(path), at.work[path], at.index.get(path)
        mine = work in at.known(path) or torn(checkout, at, path)
        if index == want and (work == want or not settling or not (mine or at.moving(path))):
            continue  # in place; a user's edit upon it stays
        if onto_result and not mine:
            continue  # a staged edit of an applied file is an edit all the same
        before[path], after[path] = index, want
        uniform = uniform and work == index
        if not mine:
            blocked[path] = _reason(work, index)
        elif index not in at.known(path) and index != work:
            blocked[path] = "staged change"
    if blocked or (before and at.left_out):
        raise _refusal(checkout, at, blocked)
    return Steps(before, after, uniform)


def _refusal(checkout: Checkout, at: Situation, blocked: Mapping[str, str]) -> LocalChanges:
    """The refusal: each edited file, and one line for all files that differ for another cause."""
    edited, causes = edits(checkout, at, classify(at))
    lines = causes.lines(edited)
    own = [f"{path}: {why}" for path, why in blocked.items() if path not in causes.converted]
    if not lines:
        remedy = "move them away or undo them, then repeat"
        return LocalChanges(
            f"{len(own)} files in {checkout.path} have local changes where the applier must "
            f"write; nothing was changed; {remedy}",
            own,
        )
    return LocalChanges(f"nothing was changed in {checkout.path}: {lines[0]}", [*lines[1:], *own])


def _reason(work: Entry | None, index: Entry | None) -> str:
    if work == IN_THE_WAY:
        return "a folder or a link stands in the way"
    if index is None:
        return "untracked file in the way"
    if work is None:
        return "deleted"
    return "mode changed" if work[1] == index[1] else "edited"


def move(
    checkout: Checkout,
    built: Built,
    at: Situation,
    target: str,
    lock_fd: int,
) -> list[str]:
    """Bring the paths in scope to the result ("applied") or the base ("pristine").

    Call with the lock held. Returns the paths that were changed; none when all was in place.

    Raises:
        LocalChanges: see :func:`plan_steps`.
        EnvironmentProblem, GitFailed: writing failed; the checkout was put back, or the
            message says that it is partly applied.
    """
    clear_stale_index_lock(checkout)
    wanted: dict[str, Entry | None] = {
        path: (at.result if target == "applied" else at.base).get(path) for path in at.scope
    }
    todo = plan_steps(checkout, at, wanted)
    records = Records(checkout.private)
    git = checkout.git.using(lock_fd=lock_fd)
    if todo.after:
        _refuse_filters(git, list(todo.after))
        # The union with an older journal: a second kill must still know the first one's content.
        before = dict(at.journal.before) if at.journal else {}
        before.update(todo.before)
        records.write(
            records.journal, Record(target, built.digest, before, {**before, **todo.after})
        )
        try:
            _write(git, checkout, at, todo)
            _verify(git, todo.after)
        except DsmoeError as error:
            raise _put_back(git, checkout, built, todo, at.journal, error) from None
    record = Record(target, built.digest, {p: at.base.get(p) for p in wanted}, wanted)
    changed_by_series = set(built.changes)
    if target == "applied" and changed_by_series:
        keep = {path: entry for path, entry in wanted.items() if path in changed_by_series}
        base = {path: at.base.get(path) for path in keep}
        records.write(records.applied, Record(target, record.series, base, keep))
    else:
        records.clear(records.applied)
    records.clear(records.journal)
    return sorted(todo.after)


def _refuse_filters(git: Git, paths: list[str]) -> None:
    """Attributes of the repository's own could change bytes on the way to the disk."""
    names = ("text", "eol", "crlf", "filter", "ident", "working-tree-encoding")
    stdin = os.fsencode("".join(f"{path}\0" for path in paths))
    out = git.run("check-attr", "-z", "--stdin", *names, stdin=stdin).out.split(b"\0")
    found = [
        f"{os.fsdecode(out[at])}: {out[at + 1].decode()} is {out[at + 2].decode()}"
        for at in range(0, len(out) - 2, 3)
        # text=auto leaves a file alone that is committed with the line ends it has.
        if out[at + 2] not in (b"unspecified", b"unset", b"auto")
    ]
    if found:
        raise LocalChanges(
            f"git attributes in {git.path} would change the bytes of {len(found)} files; "
            "remove these lines from .git/info/attributes (or .gitattributes)",
            found,
        )


def _write(git: Git, checkout: Checkout, at: Situation, todo: Steps) -> None:
    if todo.uniform and at.journal is None:
        # before is what the index holds now, so HEAD's tree with it set is the index's tree
        # on these paths, and user's staged changes elsewhere are equal on both sides.
        with workspace(checkout, dry=False) as scratch:
            old = make_tree(scratch, todo.before, checkout.tree)
            new = make_tree(scratch, todo.after, checkout.tree)
        git.run("update-index", "-q", "--refresh", ok=(0, 1))
        git.run("read-tree", "-m", "-u", old, new)
        return
    for path, entry in todo.after.items():
        if entry is None:
            remove_file(git.path, path)
    git.run("update-index", "-z", "--index-info", stdin=index_info(todo.after))
    names = "".join(f"{path}\0" for path, entry in todo.after.items() if entry is not None)
    git.run("checkout-index", "-f", "-u", "-z", "--stdin", stdin=os.fsencode(names))


def _verify(git: Git, after: Mapping[str, Entry | None]) -> None:
    wanted = {path: entry for path, entry in after.items() if entry is not None}
    found = work_entries(git, after, wanted)
    wrong = [path for path, entry in after.items() if found[path] != entry]
    if wrong:
        raise GitFailed(f"{len(wrong)} files in {git.path} were not written as asked", wrong)


def _put_back(
    git: Git,
    checkout: Checkout,
    built: Built,
    todo: Steps,
    earlier: Record | None,
    error: DsmoeError,
) -> DsmoeError:
    """Undo a failed move as far as the disk lets us; the error to raise."""
    records = Records(checkout.private)
    remedy = "the checkout is partly applied: repeat the command to finish, or use --revert"
    try:
        clear_stale_index_lock(checkout)
        now = replace(look(checkout, built), scope=sorted(todo.before))
        back = plan_steps(checkout, now, todo.before)
        if back.after:
            _write(git, checkout, now, replace(back, uniform=False))
            _verify(git, back.after)
        if earlier is not None:
            records.write(records.journal, earlier)
        else:
            records.clear(records.journal)
            remedy = "the checkout was put back as it was"
    except (DsmoeError, OSError):
        pass
    error.args = (f"{error}; {remedy}",)
    return error
