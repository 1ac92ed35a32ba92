"""What stands in a checkout, path by path, and the name of the state that it makes.

Content decides, not memory: index and work tree are compared with the base and with the result.
The record in the git folder only tells an older series from a user's edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Sequence

from dsmoe.patchset.checkout.build import Built
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.checkout.records import Record, Records, read_record
from dsmoe.patchset.tree import IN_THE_WAY, Entries, Entry, read_index, skipped, work_entries

PRISTINE = "pristine"
APPLIED = "applied"
APPLIED_EDITED = "applied-edited"
BASE_EDITED = "base-edited"
PARTLY = "partly-applied"
OTHER_SERIES = "other-series"
OTHER_BASE = "other-base"
NOT_A_CHECKOUT = "not-a-checkout"


@dataclass(frozen=True)
class Situation:
    """The entries that the state is read from; all mappings cover ``scope``.

    ``left_out`` are files that the index marks skip-worktree and that are absent, as a sparse
    checkout has them; ``work`` has the index's entry for these.
    """

    scope: list[str]
    base: Entries
    result: Mapping[str, Entry | None]
    previous: Record | None
    journal: Record | None
    index: Entries
    work: dict[str, Entry | None]
    left_out: frozenset[str] = frozenset()

    def moving(self, path: str) -> bool:
        """Whether ``path`` belongs to a move that was not finished."""
        return self.journal is not None and path in self.journal.after

    def known(self, path: str) -> list[Entry | None]:
        """Every content of ``path`` that the applier itself may have put there."""
        found = [self.base.get(path), self.result.get(path)]
        for record in (self.previous, self.journal):
            if record is not None and path in record.after:
                found += [record.before.get(path), record.after[path]]
        return found


def torn(checkout: Checkout, at: Situation, path: str) -> bool:
    """Whether ``path`` is a part that git was killed while writing."""
    work = at.work[path]
    if not at.moving(path):
        return False
    if work is None:
        return True  # git unlinks before it writes
    if work == IN_THE_WAY or work[0] == "120000":
        return False
    content = (checkout.path / path).read_bytes()
    for entry in at.known(path):
        if entry is not None and entry[0] != "120000":
            whole = checkout.git.run("cat-file", "blob", entry[1]).out
            if whole.startswith(content):
                return True
    return False


def look(checkout: Checkout, built: Built) -> Situation:
    """Read index, work tree and records of ``checkout``."""
    records = Records(checkout.private)
    previous, journal = read_record(records.applied), read_record(records.journal)
    scope = set(built.changes)
    for record in (previous, journal):
        if record is not None:
            scope.update(record.after)
    paths = sorted(scope)
    index = read_index(checkout.git)
    result = {path: built.base_entries.get(path) for path in paths}
    result.update({path: change[1] for path, change in built.changes.items()})
    work = work_entries(checkout.git, paths, index)
    absent = [path for path in paths if work[path] is None and path in index]
    left_out = skipped(checkout.git) & set(absent) if absent else frozenset()
    work.update((path, index[path]) for path in left_out)
    return Situation(
        scope=paths,
        base=built.base_entries,
        result=result,
        previous=previous,
        journal=journal,
        index=index,
        work=work,
        left_out=frozenset(left_out),
    )


def classify(at: Situation) -> str:
    """The state's name, from the touched paths alone (other edits are added later)."""

    def every(have: Mapping[str, Any], want: Mapping[str, Any], paths: Iterable[str]) -> bool:
        return all(have.get(path) == want.get(path) for path in paths)

    on_result = every(at.work, at.result, at.scope)
    on_base = every(at.work, at.base, at.scope)
    if on_result and every(at.index, at.result, at.scope):
        return APPLIED if not on_base else PRISTINE
    if on_base and every(at.index, at.base, at.scope):
        return PRISTINE
    if at.journal is not None:
        return PARTLY
    changed = [path for path in at.scope if at.result.get(path) != at.base.get(path)]
    if changed and every(at.index, at.result, at.scope) and not on_base:
        return APPLIED_EDITED
    if at.previous is not None and every(at.index, at.previous.after, at.previous.after):
        return OTHER_SERIES if not on_base else PARTLY
    if every(at.index, at.base, at.scope):
        done = [path for path in changed if at.work[path] == at.result[path]]
        return PARTLY if done else BASE_EDITED
    return _by_majority(at, changed)


def _by_majority(at: Situation, changed: Sequence[str]) -> str:
    """Edits were staged: judge by the paths that hold exactly the old or the new content."""
    old = [path for path in changed if at.work[path] == at.base.get(path)]
    new = [path for path in changed if at.work[path] == at.result[path]]
    if not new and not old:
        return APPLIED_EDITED if at.previous is not None else BASE_EDITED
    if not old and len(new) < len(at.scope):
        return APPLIED_EDITED
    if not new and len(old) < len(at.scope):
        return BASE_EDITED
    return PARTLY
