"""An export that was stopped between its commit point and its last rename.

The staging folder then holds every new file and a manifest. A reader is told (:func:`is_pending`)
or works on a completed copy; the next command that writes completes it (:func:`finish`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Tuple

from dsmoe.common.errors import SeriesBroken
from dsmoe.common.files import remove_file
from dsmoe.patchset.inputs import is_plain_path, read_input

#: The staging folder, inside the folder of the series.
STAGE = ".export"
#: The file in it whose presence is the commit point.
MANIFEST = "manifest.json"

# root (relative to the series' folder), path below it, name of the staged file (None: remove)
Step = Tuple[str, str, Optional[str]]


def is_pending(folder: Path) -> bool:
    """Whether an export into ``folder`` is to be completed."""
    return os.path.lexists(folder / STAGE / MANIFEST)


def finish(folder: Path) -> bool:
    """Carry out what a stopped export left; False when nothing was pending.

    Raises:
        SeriesBroken: the manifest is not one that an export writes.
    """
    stage = folder / STAGE
    steps = _read_steps(folder)
    for root, path, staged in steps:
        target = Path(os.path.normpath(folder / root)) / path
        if staged is None:
            remove_file(Path(os.path.normpath(folder / root)), path)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # renamed before the kill
            (stage / staged).replace(target)
    if steps:
        shutil.rmtree(stage, ignore_errors=True)
    return bool(steps)


def _read_steps(folder: Path) -> list[Step]:
    path = folder / STAGE / MANIFEST
    try:
        data = json.loads(read_input(path))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not (isinstance(data, list) and data and all(_is_step(item) for item in data)):
        raise _damaged(path, "not the list that an export writes")
    steps: list[Step] = [(root, name, staged) for root, name, staged in data]
    for root, _, _ in steps:
        if not Path(os.path.normpath(folder / root)).is_dir():
            raise _damaged(path, f"no folder {root[:200]!r}")
    return steps


def _is_step(item: object) -> bool:
    if not (isinstance(item, list) and len(item) == 3):
        return False
    root, path, staged = item
    known = staged is None or (isinstance(staged, str) and staged.isdecimal() and len(staged) < 9)
    return isinstance(root, str) and "\0" not in root and is_plain_path(path) and known


def _damaged(path: Path, words: object) -> SeriesBroken:
    return SeriesBroken(
        f"{path} is a damaged record of an export that was stopped ({words}); remove the folder "
        f"{path.parent}, compare patch/ and overlay/ with your last commit, then export again"
    )


@contextlib.contextmanager
def completed_copy(
    folders: Sequence[Path], others: Sequence[Path]
) -> Iterator[Callable[[Path], Path]]:
    """A temporary copy of ``folders`` and ``others`` in which every export is completed.

    Yields the function that gives the place of a path in the copy.
    """
    for path in folders:
        _read_steps(path)  # a damaged record is named where it is, not in the copy
    given = [path.resolve() for path in (*folders, *others) if path.is_dir()]
    top = Path(os.path.commonpath([str(path) for path in given]))
    with tempfile.TemporaryDirectory(prefix="dsmoe-") as name:
        copy = Path(name).resolve()

        def moved(path: Path) -> Path:
            return copy / path.resolve().relative_to(top)

        for path in dict.fromkeys(given):
            shutil.copytree(path, moved(path), symlinks=True, dirs_exist_ok=True)
        for path in folders:
            finish(moved(path))
        yield moved
