"""Why files differ that nobody edited: converted line ends, or a sparse checkout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Collection, Mapping

from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.inputs import read_input
from dsmoe.patchset.tree import Entry

_RENEW = "git config core.autocrlf false; git rm -q --cached -r .; git reset -q --hard"


@dataclass(frozen=True)
class Causes:
    """Files whose difference has a known cause: ``converted`` line ends, or ``left_out``.

    ``sparse`` says that the files left out are so by a sparse checkout; otherwise somebody marked
    them skip-worktree.
    """

    converted: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    sparse: bool = True

    def lines(self, edited: Collection[str]) -> list[str]:
        """One line for each cause, with the commands that remove it and keep what is edited."""
        found = []
        if self.converted:
            # reset --hard would destroy real edits; a stash keeps them, with the base's line ends.
            renew = f"git stash; {_RENEW}; git stash pop" if edited else _RENEW
            kept = f" (keeps your edits of {len(edited)} files)" if edited else ""
            found.append(
                f"{len(self.converted)} files have line ends converted by git (core.autocrlf); "
                f"check the files out byte for byte{kept}: {renew}"
            )
        if self.left_out:
            names = sorted(self.left_out)
            tops = " ".join(sorted({path.split("/")[0] for path in names}))
            what, how = "a sparse checkout leaves out", f"git sparse-checkout add {tops}"
            if not self.sparse:
                what = "marked skip-worktree and absent:"
                how = f"git update-index --no-skip-worktree {names[0]} ...; git checkout -- {tops}"
            found.append(
                f"{what} {len(names)} files that the series needs (first: {names[0]}); "
                f"widen it: {how}"
            )
        return found


def find_causes(
    checkout: Checkout,
    index: Mapping[str, Entry],
    work: Mapping[str, Entry | None],
    left_out: Collection[str] = (),
) -> Causes:
    """The causes among the files of ``work``, all of which differ from what was expected.

    ``left_out`` are files that are absent and marked so in the index.
    """
    converted = frozenset(
        path
        for path, entry in work.items()
        if entry is not None and path in index and _is_converted(checkout, path, entry, index[path])
    )
    if not left_out:
        return Causes(converted)
    args = ("config", "--bool", "core.sparseCheckout")
    sparse = checkout.git.run(*args, ok=(0, 1), neutral=False).text == "true"
    return Causes(converted, frozenset(left_out), sparse)


def _is_converted(checkout: Checkout, path: str, work: Entry, index: Entry) -> bool:
    """Whether the file is the index's but for LF that became CRLF."""
    if work[1] == index[1] or not (work[0].startswith("100") and index[0].startswith("100")):
        return False
    try:
        plain = read_input(checkout.path / path).replace(b"\r\n", b"\n")
    except (OSError, ValueError):
        return False
    return hashlib.sha1(b"blob %d\0" % len(plain) + plain).hexdigest() == index[1]
