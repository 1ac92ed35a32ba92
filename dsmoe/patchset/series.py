"""The series of one base: its patches in order, its overlay files, and the digest of both.

Reading never writes. Where an export was stopped half-way, :func:`readable` gives the base as
that export would have written it.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from dsmoe.common.errors import SeriesBroken
from dsmoe.patchset.base import Base
from dsmoe.patchset.inputs import read_input
from dsmoe.patchset.overlay import overlay_content, overlay_files, overlay_mode
from dsmoe.patchset.patch_file import Patch, read_patch
from dsmoe.patchset.pending import completed_copy, finish, is_pending


@dataclass(frozen=True)
class Series:
    """The patches of a base in order, and the overlay: target path -> source file."""

    base: Base
    patches: tuple[Patch, ...]
    overlay: dict[str, Path]
    digest: str


def read_names(path: Path) -> list[str]:
    """The patch names in a series file; ``#`` starts a comment, empty lines are skipped."""
    lines = (line.split("#", 1)[0].strip() for line in series_lines(path))
    return [line for line in lines if line]


def series_lines(path: Path) -> list[str]:
    """The lines of a series file, comments too; ``SeriesBroken`` when it cannot be read."""
    try:
        text = read_input(path).decode("utf-8")
        if "\0" in text:
            raise ValueError("it holds a NUL character")
        return text.splitlines()
    except OSError as error:
        raise SeriesBroken(f"cannot read the series {path}: {error.strerror}") from None
    except ValueError as error:
        raise SeriesBroken(
            f"{path} is not a series: expected UTF-8 text, one patch name a line ({error})"
        ) from None


def name_in(names: Sequence[str], wanted: str) -> int | None:
    """The number of the patch called ``wanted``, in full or by its file name alone."""
    for number, name in enumerate(names):
        if wanted in (name, Path(name).name):
            return number
    return None


def load_series(base: Base) -> Series:
    """Read the series and the overlay of ``base``; ``SeriesBroken`` lists unreadable patches."""
    patches: list[Patch] = []
    problems: list[str] = []
    for name in read_names(base.series):
        try:
            patches.append(read_patch(base.series.parent / name, name))
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) else error
            problems.append(f"{name[:200]}: {words}")
    if problems:
        raise SeriesBroken(f"{base.series}: {len(problems)} patches cannot be read", problems)
    overlay = overlay_files(base.overlays)
    try:
        digest = digest_of(base, patches, overlay)
    except (OSError, ValueError) as error:
        raise SeriesBroken(f"an overlay file cannot be read: {error}") from None
    return Series(base, tuple(patches), overlay, digest)


def folders_of(base: Base) -> list[Path]:
    """The folders that hold patches of ``base``: its own, and those that its series shares."""
    found = [base.series.parent]
    for name in read_names(base.series) if base.series.is_file() else []:
        with contextlib.suppress(OSError, ValueError):  # load_series lists unusable names
            folder = (base.series.parent / name).parent.resolve()
            if folder not in found and folder.is_dir():
                found.append(folder)
    return found


def pending_exports(base: Base) -> list[Path]:
    """The folders of ``base`` with an export that was stopped before all files were in place."""
    return [folder for folder in folders_of(base) if is_pending(folder)]


def finish_exports(base: Base) -> None:
    """Complete every export that was stopped half-way; only commands that write may call it."""
    for folder in pending_exports(base):
        finish(folder)


@contextlib.contextmanager
def readable(base: Base) -> Iterator[Base]:
    """``base`` with stopped exports completed: in a copy, so that nothing here is written."""
    folders = folders_of(base)
    if not any(is_pending(folder) for folder in folders):
        yield base
        return
    with completed_copy(folders, [base.folder, *base.overlays]) as moved:
        yield base.moved(moved)


def digest_of(base: Base, patches: Sequence[Patch], overlay: Mapping[str, Path]) -> str:
    """sha256 over the base's commit, the patches in order and the overlay files."""
    total = hashlib.sha256()
    parts = [("base", base.commit.encode())]
    parts += [(patch.name, patch.header + patch.diff) for patch in patches]
    parts += [
        (f"{path} {overlay_mode(source)}", overlay_content(source))
        for path, source in overlay.items()
    ]
    for name, content in parts:
        total.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        total.update(content)
    return total.hexdigest()
