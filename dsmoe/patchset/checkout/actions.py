"""The commands on a checkout: apply, check, revert, lock. Each returns what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Sequence

from dsmoe.common.errors import SeriesBroken
from dsmoe.common.files import write_atomically
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.build import Built, build
from dsmoe.patchset.checkout.lock import locked
from dsmoe.patchset.checkout.move import move, plan_steps
from dsmoe.patchset.checkout.open import Checkout, need_base, open_checkout, workspace
from dsmoe.patchset.checkout.renewal import finish_export
from dsmoe.patchset.checkout.situation import PARTLY, look
from dsmoe.patchset.checkout.state import State, describe_checkout, describe_committed
from dsmoe.patchset.locked_result import check_result, result_content
from dsmoe.patchset.series import Series, finish_exports, load_series, readable
from dsmoe.patchset.tree import read_tree

Say = Callable[[str], None]
ALREADY = "already applied, nothing to do"


@dataclass(frozen=True)
class ActionResult:
    """What a command did: a word, one line for the user, the state after it, changed paths."""

    name: str
    message: str
    state: State
    changed: list[str] = field(default_factory=list)
    trees: dict[str, str] = field(default_factory=dict)


def found_line(checkout: Checkout) -> str:
    """One line that names the base and the kind of checkout."""
    return f"{checkout.path}: base {checkout.base.name} ({checkout.label}), HEAD {checkout.head}"


def apply(path: Path, bases: Sequence[Base], say: Say = print) -> ActionResult:
    """Apply the series to the checkout at ``path``; finish a killed run; renew an older series.

    Raises:
        NotACheckout, OtherBase, SeriesBroken, ResultMismatch, LocalChanges, Busy,
        EnvironmentProblem: nothing was changed, unless the message says otherwise.
    """
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    finish_exports(checkout.base)
    if checkout.committed:
        return _already_committed(checkout)
    series = load_series(checkout.base)
    with locked(checkout, say) as handle:
        with workspace(checkout, dry=False) as git:
            built = build(git.using(lock_fd=handle), checkout, series)
        check_result(checkout.base, built.digest, built.tops, path)
        say(f"{_counts(series)} fit; the result is the locked one")
        finish_export(checkout, built, handle)
        at = look(checkout, built)
        before = describe_checkout(checkout, built, at)
        if before.name == PARTLY:
            was = "an earlier run was stopped half-way" if before.interrupted else "partly applied"
            say(f"{was}: completing it")
        changed = move(checkout, built, at, "applied", handle)
        after = describe_checkout(checkout, built)
    if not changed:
        return ActionResult("already-applied", ALREADY, after, changed, built.tops)
    message = f"applied: {len(changed)} files changed, HEAD not moved"
    return ActionResult("applied", message, after, changed, built.tops)


def _already_committed(checkout: Checkout) -> ActionResult:
    state = describe_committed(checkout)
    return ActionResult("already-applied", ALREADY, state, [], state.result)


def check(path: Path, bases: Sequence[Base], say: Say = print) -> ActionResult:
    """What :func:`apply` would do, without writing anything; raises what it would raise."""
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    if checkout.committed:
        return _already_committed(checkout)
    with readable(checkout.base) as base, workspace(checkout, dry=True) as git:
        series = load_series(base)
        built = build(git, checkout, series)
        check_result(base, built.digest, built.tops, path)
        at = look(checkout, built)
        todo = plan_steps(checkout, at, {path: at.result.get(path) for path in at.scope})
        state = describe_checkout(checkout, built, at)
    if not todo.after:
        message = f"{_counts(series)} fit; already applied"
        return ActionResult("already-applied", message, state, [], built.tops)
    changed = sorted(todo.after)
    message = f"{_counts(series)} fit; applying would change {len(changed)} files"
    return ActionResult("would-apply", message, state, changed, built.tops)


def revert(path: Path, bases: Sequence[Base], say: Say = print) -> ActionResult:
    """Bring the checkout back to the base; edited files are refused, and listed."""
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    need_base(checkout)
    finish_exports(checkout.base)
    with locked(checkout, say) as handle:
        built = _build_or_base(checkout, handle)
        finish_export(checkout, built, handle)
        at = look(checkout, built)
        changed = move(checkout, built, at, "pristine", handle)
        after = describe_checkout(checkout, built)
    if changed:
        message = f"reverted: {len(changed)} files changed, HEAD not moved"
    else:
        message = "not applied, nothing to revert"
    return ActionResult("reverted" if changed else "already-pristine", message, after, changed)


def lock(path: Path, bases: Sequence[Base], say: Say = print) -> ActionResult:
    """Write result.json from patch/ and overlay/ as they are; the checkout is only read."""
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    need_base(checkout)
    base = checkout.base
    finish_exports(base)
    with workspace(checkout, dry=True) as git:
        built = build(git, checkout, load_series(base))
        state = describe_checkout(checkout, built)
    content = result_content(base, built.digest, built.tops)
    new = write_atomically(base.result_file, content)
    message = f"{base.result_file}: " + ("written" if new else "unchanged")
    return ActionResult("locked" if new else "lock-unchanged", message, state, [], built.tops)


def _build_or_base(checkout: Checkout, lock_fd: int) -> Built:
    """The series' result; the bare base when the series no longer fits (the record remains)."""
    with workspace(checkout, dry=False) as scratch:
        git = scratch.using(lock_fd=lock_fd)
        try:
            return build(git, checkout, load_series(checkout.base))
        except SeriesBroken:
            return Built(checkout.tree, read_tree(git, checkout.tree), {}, {}, "")


def _counts(series: Series) -> str:
    return f"{len(series.patches)} patches and {len(series.overlay)} overlay files"
