"""The commands on the ``deepspeed`` package that pip installed: status, apply, check, revert."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, Sequence

from dsmoe.common.errors import Busy, LocalChanges, NotACheckout, OtherBase, SeriesBroken
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.actions import ActionResult
from dsmoe.patchset.checkout.build import Built
from dsmoe.patchset.checkout.lock import locked
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.checkout.records import Record
from dsmoe.patchset.checkout.situation import (
    APPLIED,
    APPLIED_EDITED,
    BASE_EDITED,
    NOT_A_CHECKOUT,
    OTHER_BASE,
    OTHER_SERIES,
    PARTLY,
    PRISTINE,
)
from dsmoe.patchset.checkout.state import State
from dsmoe.patchset.git import Git
from dsmoe.patchset.locked_result import check_result
from dsmoe.patchset.series import finish_exports, pending_exports, readable
from dsmoe.patchset.sources.installed_files import (
    LABEL,
    PACKAGE,
    Installed,
    Patcher,
    find,
    were_edited,
)

Say = Callable[[str], None]


@contextlib.contextmanager
def _reading(package: Installed) -> Iterator[Patcher]:
    """A patcher whose database is temporary and reads the kept one, so that nothing is written."""
    with tempfile.TemporaryDirectory(prefix="dsmoe-") as name, readable(package.base) as base:
        git = _init(Path(name))
        if package.folder.is_dir():
            alternates = Path(name) / "objects/info/alternates"
            alternates.write_text(f"{package.folder / 'objects'}\n", encoding="utf-8")
        yield Patcher(replace(package, base=base), git)


@contextlib.contextmanager
def _writing(package: Installed, say: Say) -> Iterator[Patcher]:
    git = _init(package.folder)
    own = Checkout(
        package.site, package.folder, package.folder / "objects", package.base, LABEL, "", "", {},
        git,
    )  # fmt: skip
    with locked(own, say) as handle:
        if not package.folder.is_dir():
            raise Busy(f"{package.site / PACKAGE} was just reverted by another run; repeat")
        yield Patcher(package, git.using(lock_fd=handle))


def _init(folder: Path) -> Git:
    folder.mkdir(exist_ok=True)
    git = Git(folder, trusted=True)
    git.run("init", "-q", "--bare", "--template=", ".")
    (folder / "objects" / "info").mkdir(exist_ok=True)
    return git


def describe(bases: Sequence[Base]) -> State:
    """The state of the installed package; writes nothing."""
    try:
        package = find(bases)
    except NotACheckout as error:
        return State(NOT_A_CHECKOUT, "", message=str(error))
    except OtherBase as error:
        return State(OTHER_BASE, "", message=str(error))
    pending = [str(folder) for folder in pending_exports(package.base)]
    with _reading(package) as patcher:
        try:
            return replace(_state(patcher, patcher.build()), pending=pending)
        except LocalChanges as error:
            state = State(BASE_EDITED, str(package.site / PACKAGE), package.base.name, LABEL)
            head = package.base.commit
            return replace(state, edited=error.details, head=head, pending=pending)


def _state(patcher: Patcher, built: Built) -> State:
    package, base = patcher.package, patcher.package.base
    before, after = patcher.wanted(built, applied=False), patcher.wanted(built, applied=True)
    edited = patcher.edited(built, [*patcher.files, *(p for p in after if p not in patcher.files)])
    if patcher.holds(after):
        name = APPLIED_EDITED if edited else APPLIED
    elif patcher.holds(before):
        name = BASE_EDITED if edited else PRISTINE
    elif any(patcher.holds({**before, **record.after}) for record in patcher.records[:1]):
        name = OTHER_SERIES
    else:
        name = PARTLY
        if edited:
            name = APPLIED_EDITED if patcher.records else BASE_EDITED
    return State(
        name=name,
        path=str(package.site / PACKAGE),
        base=base.name,
        label=LABEL,
        head=base.commit,
        trees=dict(base.trees),
        result=dict(built.tops),
        edited=edited,
        interrupted=name == PARTLY,
    )


def found_line(package: Installed) -> str:
    """One line that names the package and its base."""
    base = package.base
    return f"{package.site / PACKAGE}: {PACKAGE} {base.version}, base {base.name} ({LABEL})"


def apply(bases: Sequence[Base], say: Say = print, dry: bool = False) -> ActionResult:
    """Apply the series to the installed package; finish a killed run; renew an older series.

    With ``dry`` it is only tried, and nothing is written.

    Raises:
        NotACheckout, OtherBase, SeriesBroken, ResultMismatch, LocalChanges, Busy,
        EnvironmentProblem: nothing was changed.
    """
    package = find(bases)
    say(found_line(package))
    if not dry:
        finish_exports(package.base)
    with _reading(package) as patcher:  # refuse before the package's folder is written
        built = _checked(patcher)
        todo = patcher.wanted(built, applied=True)
        if dry or patcher.holds(todo):
            name = "already-applied" if patcher.holds(todo) else "would-apply"
            message = "applying would change the package" if dry else "already applied"
            message = message if name == "would-apply" else "already applied, nothing to do"
            return ActionResult(name, message, _state(patcher, built), [], built.tops)
    with _writing(package, say) as patcher:
        built = _checked(patcher)
        records, after = patcher.kept, patcher.wanted(built, applied=True)
        # What an older series put there must stay known until every file is the new one.
        for record in patcher.records[:1]:
            records.write(records.journal, record)
        before = patcher.wanted(built, applied=False)
        records.write(records.applied, Record("applied", built.digest, before, after))
        changed = patcher.write(after)
        records.clear(records.journal)
        patcher.look(built)
        state = _state(patcher, built)
    message = f"applied: {len(changed)} files changed; --installed --revert takes it back"
    return ActionResult("applied", message, state, changed, built.tops)


def _checked(patcher: Patcher) -> Built:
    built = patcher.build()
    check_result(patcher.package.base, built.digest, built.tops, patcher.package.site)
    paths = [*patcher.files, *(p for p in patcher.touched(built) if p not in patcher.files)]
    edited = patcher.edited(built, paths)
    if edited:
        raise were_edited(edited)
    return built


def revert(bases: Sequence[Base], say: Say = print) -> ActionResult:
    """Give the installed package its own files back, and remove what was added."""
    package = find(bases)
    say(found_line(package))
    finish_exports(package.base)
    if not package.folder.is_dir():
        state = describe(bases)
        return ActionResult("already-pristine", "not applied, nothing to revert", state)
    with _writing(package, say) as patcher:
        built: Built | None
        try:
            built = patcher.build()
        except SeriesBroken:  # the record of what was applied is enough
            built = None
            patcher.look()
        before = patcher.wanted(built, applied=False)
        edited = patcher.edited(built, before)
        if edited:
            raise were_edited(edited)
        changed = patcher.write(before)
        shutil.rmtree(package.folder)
    message = f"reverted: {len(changed)} files changed"
    return ActionResult("reverted", message, describe(bases), changed)
