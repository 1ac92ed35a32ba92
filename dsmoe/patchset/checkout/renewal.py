"""The checkout's part of an export: its index and its record follow the exported series.

The project's files come first, and a kill can fall between the two. A note in the git folder tells
of it, so that the next command that writes does the rest.
"""

from __future__ import annotations

from typing import Mapping

from dsmoe.patchset.checkout.build import Built
from dsmoe.patchset.checkout.lock import clear_stale_index_lock
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.checkout.records import Record, Records, read_record
from dsmoe.patchset.git import Git
from dsmoe.patchset.tree import Entry, index_info, read_index


def announce(checkout: Checkout, built: Built, edits: Mapping[str, Entry | None]) -> None:
    """Note that the series ``built`` is about to be written, in which ``edits`` are contained."""
    records = Records(checkout.private)
    index = read_index(checkout.git)
    before = {path: index.get(path) for path in edits}
    records.write(records.exported, Record("exported", built.digest, before, dict(edits)))


def renew(git: Git, checkout: Checkout, built: Built, edits: Mapping[str, Entry | None]) -> None:
    """``edits`` are the series now: the index and the record say so."""
    if edits:
        git.run("update-index", "-z", "--index-info", stdin=index_info(edits))
        git.run("update-index", "-q", "--refresh", ok=(0, 1))
    records = Records(checkout.private)
    if built.changes:
        after = {path: change[1] for path, change in built.changes.items()}
        before = {path: change[0] for path, change in built.changes.items()}
        records.write(records.applied, Record("applied", built.digest, before, after))
    else:
        records.clear(records.applied)
    records.clear(records.exported)


def finish_export(checkout: Checkout, built: Built, lock_fd: int) -> bool:
    """Do the rest of an export that was stopped; call with the lock held.

    ``built`` is the series that the project has now. Where it is not that of the note (the export
    had written nothing, or the series went on) or the index went on, the note is dropped.
    """
    records = Records(checkout.private)
    note = read_record(records.exported)
    if note is None or not built.digest:
        return False
    clear_stale_index_lock(checkout)
    index = read_index(checkout.git)
    known = all(index.get(p) in (note.before.get(p), entry) for p, entry in note.after.items())
    if note.series != built.digest or not known:
        records.clear(records.exported)
        return False
    renew(checkout.git.using(lock_fd=lock_fd), checkout, built, note.after)
    return True
