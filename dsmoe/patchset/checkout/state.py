"""Naming the state of a checkout.

Content decides, not memory: index and work tree are compared, path by path, with the base and
with the result. The record in the git folder only tells an older series from a user's edits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from dsmoe.common.errors import NotACheckout, OtherBase
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.checkout.build import Built, build
from dsmoe.patchset.checkout.open import Checkout, open_checkout, workspace
from dsmoe.patchset.checkout.records import Notes, Record, read_record
from dsmoe.patchset.git import Git
from dsmoe.patchset.series import Series, is_junk, load_series
from dsmoe.patchset.tree import GITLINK, IN_THE_WAY, Entries, Entry, read_index, work_entries

PRISTINE = "pristine"
APPLIED = "applied"
APPLIED_EDITED = "applied-edited"
BASE_EDITED = "base-edited"
PARTLY = "partly-applied"
OTHER_SERIES = "other-series"
OTHER_BASE = "other-base"
NOT_A_CHECKOUT = "not-a-checkout"

WORDS = {
    PRISTINE: "pristine: the base, nothing applied",
    APPLIED: "applied",
    APPLIED_EDITED: "applied, then edited",
    BASE_EDITED: "the base, edited, nothing applied",
    PARTLY: "partly applied: repeat the command to finish, or use --revert",
    OTHER_SERIES: "applied with another series; apply again to renew it",
}
EXIT_CODES = {
    PRISTINE: 20,
    APPLIED: 0,
    APPLIED_EDITED: 21,
    BASE_EDITED: 22,
    PARTLY: 23,
    OTHER_SERIES: 24,
    OTHER_BASE: OtherBase.exit_code,
    NOT_A_CHECKOUT: NotACheckout.exit_code,
}


@dataclass(frozen=True)
class State:
    """What a checkout is in.

    ``trees`` are the ids of HEAD's top folders that the base pins, ``result`` those of the
    folders that the series touches as it would leave (or has left) them. ``edited`` lists files
    with local changes, ``interrupted`` says that a move was killed half-way.
    """

    name: str
    path: str
    base: str = ""
    label: str = ""
    head: str = ""
    trees: dict[str, str] = field(default_factory=dict)
    result: dict[str, str] = field(default_factory=dict)
    edited: list[str] = field(default_factory=list)
    interrupted: bool = False
    message: str = ""

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Situation:
    """The entries that the state is read from; all mappings cover ``scope``."""

    scope: list[str]
    base: Entries
    result: Mapping[str, Entry | None]
    previous: Record | None
    journal: Record | None
    index: Entries
    work: dict[str, Entry | None]

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
    notes = Notes(checkout.private)
    previous, journal = read_record(notes.applied), read_record(notes.journal)
    scope = set(built.changes)
    for record in (previous, journal):
        if record is not None:
            scope.update(record.after)
    paths = sorted(scope)
    index = read_index(checkout.git)
    result = {path: built.base_entries.get(path) for path in paths}
    result.update({path: change[1] for path, change in built.changes.items()})
    return Situation(
        scope=paths,
        base=built.base_entries,
        result=result,
        previous=previous,
        journal=journal,
        index=index,
        work=work_entries(checkout.git, paths, index),
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


def local_changes(git: Git) -> list[str]:
    """Paths whose work tree content is not the index's, and untracked files, by ``git status``."""
    args = ("status", "--porcelain=v1", "-z", "--untracked-files=all", "--ignore-submodules=all")
    out = git.run(*args, "--no-renames").out.decode("utf-8", "surrogateescape")
    paths = []
    for record in out.split("\0"):
        if record and (record[1] != " " or record.startswith("?")) and not is_junk(record[3:]):
            paths.append(record[3:])
    return sorted(paths)


def edits(checkout: Checkout, at: Situation, name: str) -> list[str]:
    """Files that are neither as the base nor as the series has them."""
    found = {
        path
        for path in at.scope
        if at.work[path] not in at.known(path) and not torn(checkout, at, path)
    }
    nominal: Mapping[str, Any] = {}
    if name in (APPLIED, APPLIED_EDITED):
        nominal = at.result
    elif name == OTHER_SERIES and at.previous is not None:
        nominal = at.previous.after
    elif name in (PRISTINE, BASE_EDITED):
        nominal = {path: at.base.get(path) for path in at.scope}
    found |= {path for path in nominal if at.work[path] != nominal[path]}
    scope = set(at.scope)
    found |= {path for path in local_changes(checkout.git) if path not in scope}
    for path, entry in at.index.items():
        if path not in scope and entry != at.base.get(path) and entry[0] != GITLINK:
            found.add(path)
    found |= {path for path in at.base if path not in at.index and path not in scope}
    return sorted(found)


def describe_checkout(checkout: Checkout, built: Built, at: Situation | None = None) -> State:
    """The state of an identified checkout."""
    at = at or look(checkout, built)
    name = classify(at)
    changed = edits(checkout, at, name)
    if changed and name == APPLIED:
        name = APPLIED_EDITED
    if changed and name == PRISTINE:
        name = BASE_EDITED
    base = checkout.base
    return State(
        name=name,
        path=str(checkout.path),
        base=base.name,
        label=checkout.label,
        head=checkout.head,
        trees={top: checkout.tops[top] for top in base.trees},
        result=dict(built.tops),
        edited=changed,
        interrupted=at.journal is not None and name == PARTLY,
    )


def describe(path: Path, bases: Sequence[Base] | None = None) -> State:
    """The state of whatever is at ``path``; writes nothing.

    Raises:
        SeriesBroken: the series in this project does not fit the base.
        EnvironmentProblem: git or GitPython is missing.
    """
    try:
        checkout = open_checkout(Path(path), list(bases or load_bases()))
    except NotACheckout as error:
        return State(NOT_A_CHECKOUT, str(path), message=str(error))
    except OtherBase as error:
        return State(OTHER_BASE, str(path), message=str(error))
    series: Series = load_series(checkout.base)
    with workspace(checkout, dry=True) as git:
        return describe_checkout(checkout, build(git, checkout, series))
