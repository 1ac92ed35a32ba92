"""The commands on a checkout: apply, check, revert, lock. Each returns what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Sequence

from dsmoe.common.errors import SeriesBroken
from dsmoe.patchset.base import Base
from dsmoe.patchset.checkout.build import Built, build, check_lock, write_lock
from dsmoe.patchset.checkout.move import move, plan
from dsmoe.patchset.checkout.open import Checkout, open_checkout, workspace
from dsmoe.patchset.checkout.records import locked
from dsmoe.patchset.checkout.state import PARTLY, State, describe_checkout, look
from dsmoe.patchset.series import load_series
from dsmoe.patchset.tree import read_tree

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a command did: a word, one line for people, the state after it, changed paths."""

    name: str
    message: str
    state: State
    changed: list[str] = field(default_factory=list)
    trees: dict[str, str] = field(default_factory=dict)


def found_line(checkout: Checkout) -> str:
    """One line that names the base and the kind of checkout."""
    return f"{checkout.path}: base {checkout.base.name} ({checkout.label}), HEAD {checkout.head}"


def apply(path: Path, bases: Sequence[Base], say: Say = print) -> Outcome:
    """Apply the series to the checkout at ``path``; finish a killed run; renew an older series.

    Raises:
        NotACheckout, OtherBase, SeriesBroken, ResultMismatch, LocalChanges, Busy,
        EnvironmentProblem: nothing was changed, unless the message says otherwise.
    """
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    series = load_series(checkout.base)
    with locked(checkout, say) as handle:
        with workspace(checkout, dry=False) as git:
            built = build(git.using(lock_fd=handle), checkout, series)
        check_lock(series, built, path)
        say(
            f"{_counts(len(series.patches), len(series.overlay))} fit; the result is the locked one"
        )
        at = look(checkout, built)
        before = describe_checkout(checkout, built, at)
        if before.name == PARTLY:
            was = "a former run was stopped half-way" if before.interrupted else "partly applied"
            say(f"{was}: completing it")
        changed = move(checkout, built, at, "applied", handle)
        after = describe_checkout(checkout, built)
    if changed:
        message = f"applied: {len(changed)} files changed, HEAD not moved"
    else:
        message = "already applied, nothing to do"
    return Outcome("applied" if changed else "already-applied", message, after, changed, built.tops)


def check(path: Path, bases: Sequence[Base], say: Say = print) -> Outcome:
    """What :func:`apply` would do, without writing anything; raises what it would raise."""
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    series = load_series(checkout.base)
    with workspace(checkout, dry=True) as git:
        built = build(git, checkout, series)
        check_lock(series, built, path)
        at = look(checkout, built)
        todo = plan(checkout, at, {path: at.result.get(path) for path in at.scope})
        state = describe_checkout(checkout, built, at)
    counts = _counts(len(series.patches), len(series.overlay))
    if not todo.after:
        return Outcome("already-applied", f"{counts} fit; already applied", state, [], built.tops)
    changed = sorted(todo.after)
    message = f"{counts} fit; applying would change {len(changed)} files"
    return Outcome("would-apply", message, state, changed, built.tops)


def revert(path: Path, bases: Sequence[Base], say: Say = print) -> Outcome:
    """Bring the checkout back to the base; edited files are refused, and listed."""
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    with locked(checkout, say) as handle:
        built = _build_or_base(checkout, handle)
        at = look(checkout, built)
        changed = move(checkout, built, at, "pristine", handle)
        after = describe_checkout(checkout, built)
    if changed:
        message = f"reverted: {len(changed)} files changed, HEAD not moved"
    else:
        message = "not applied, nothing to revert"
    return Outcome("reverted" if changed else "already-pristine", message, after, changed)


def lock(path: Path, bases: Sequence[Base], say: Say = print) -> Outcome:
    """Write result.json from patch/ and overlay/ as they are; the checkout is only read."""
    checkout = open_checkout(path, bases)
    say(found_line(checkout))
    series = load_series(checkout.base)
    with workspace(checkout, dry=True) as git:
        built = build(git, checkout, series)
        state = describe_checkout(checkout, built)
    new = write_lock(series, built)
    message = f"{series.base.result_file}: " + ("written" if new else "unchanged")
    return Outcome("locked" if new else "lock-unchanged", message, state, [], built.tops)


def _build_or_base(checkout: Checkout, lock_fd: int) -> Built:
    """The series' result; the bare base when the series no longer fits (the record remains)."""
    with workspace(checkout, dry=False) as scratch:
        git = scratch.using(lock_fd=lock_fd)
        try:
            return build(git, checkout, load_series(checkout.base))
        except SeriesBroken:
            return Built(checkout.tree, read_tree(git, checkout.tree), {}, {}, "")


def _counts(patches: int, files: int) -> str:
    return f"{patches} patches and {files} overlay files"


__all__ = ["Outcome", "apply", "check", "found_line", "lock", "revert"]
