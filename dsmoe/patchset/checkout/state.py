"""The state of a checkout, as ``--status`` tells it. Reading it writes nothing, anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from dsmoe.common.errors import NotACheckout, OtherBase
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.checkout.build import Built, build
from dsmoe.patchset.checkout.causes import Causes, find_causes
from dsmoe.patchset.checkout.open import Checkout, open_checkout, workspace
from dsmoe.patchset.checkout.situation import (
    APPLIED,
    APPLIED_EDITED,
    BASE_EDITED,
    NOT_A_CHECKOUT,
    OTHER_BASE,
    OTHER_SERIES,
    PARTLY,
    PRISTINE,
    Situation,
    classify,
    look,
    torn,
)
from dsmoe.patchset.locked_result import read_result
from dsmoe.patchset.overlay import is_junk
from dsmoe.patchset.series import load_series, pending_exports, readable
from dsmoe.patchset.tree import GITLINK, local_entries, read_index, read_tree

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
    with local changes, ``interrupted`` says that a move was killed half-way. ``causes`` are lines
    that say why files differ that nobody edited, and what to do. ``pending`` are the folders with
    an export that was stopped half-way: the next command that writes completes it.
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
    causes: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def edits(checkout: Checkout, at: Situation, name: str) -> tuple[list[str], Causes]:
    """Files that somebody edited, and those that differ for another cause."""
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
    work = {path: at.work[path] for path in found}
    scope = set(at.scope)
    local = local_entries(checkout.git)
    work.update((path, local[path]) for path in local if path not in scope and not is_junk(path))
    causes = find_causes(checkout, at.index, work, at.left_out)
    # A staged edit is an edit, also where its line ends are converted.
    plain = {p for p in causes.converted if p not in scope or at.index[p] in at.known(p)}
    causes = replace(causes, converted=frozenset(plain))
    edited = set(work) - plain
    for path, entry in at.index.items():
        if path not in scope and entry != at.base.get(path) and entry[0] != GITLINK:
            edited.add(path)
    edited |= {path for path in at.base if path not in at.index and path not in scope}
    return sorted(edited), causes


def describe_checkout(checkout: Checkout, built: Built, at: Situation | None = None) -> State:
    """The state of an identified checkout."""
    at = at or look(checkout, built)
    name = classify(at)
    changed, causes = edits(checkout, at, name)
    if (changed or causes.converted) and name == APPLIED:
        name = APPLIED_EDITED
    if (changed or causes.converted) and name == PRISTINE:
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
        causes=causes.lines(changed),
    )


def describe_committed(checkout: Checkout) -> State:
    """The state of a checkout whose HEAD is a commit of the applied series."""
    head, index = read_tree(checkout.git, checkout.tree), read_index(checkout.git)
    local = {p: e for p, e in local_entries(checkout.git).items() if not is_junk(p)}
    causes = find_causes(checkout, index, local)
    staged = {path for path in {*head, *index} if head.get(path) != index.get(path)}
    edited = sorted((set(local) - causes.converted) | staged)
    return State(
        name=APPLIED_EDITED if edited or causes.converted else APPLIED,
        path=str(checkout.path),
        base=checkout.base.name,
        label=checkout.label,
        head=checkout.head,
        trees=dict(checkout.base.trees),
        result=read_result(checkout.base)[0],
        edited=edited,
        causes=causes.lines(edited),
    )


def describe(path: Path, bases: Sequence[Base] | None = None) -> State:
    """The state of whatever is at ``path``; writes nothing, neither there nor in the project.

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
    pending = [str(folder) for folder in pending_exports(checkout.base)]
    if checkout.committed:
        return replace(describe_committed(checkout), pending=pending)
    with readable(checkout.base) as base, workspace(checkout, dry=True) as git:
        built = build(git, checkout, load_series(base))
        return replace(describe_checkout(checkout, built), pending=pending)
