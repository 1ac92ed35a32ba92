"""A folder of checkpoints as ``dsmoe train`` writes it, and what it says of itself.

``dsmoe.json`` (the case, the text, the tokenizer; under "next" those of the checkpoints that a
resumed training is to write), ``tokenizer.json`` (where the text was not
taken by bytes), a folder ``stepN`` for each checkpoint, ``latest`` with the name of the last whole
one, ``runs/`` with the logs, and ``.lock``, which a training holds.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.data.tokenizer import json_file
from dsmoe.common.errors import Busy, ResultsError, UsageError
from dsmoe.common.files import is_file, read_input, read_large, write_atomically

DESCRIPTION = "dsmoe.json"
TOKENIZER = "tokenizer.json"
LATEST = "latest"
LOCK = ".lock"
MANIFEST = "manifest.sha256"
FORMAT = 1
TEXT_KEYS = ("paths", "cap", "field")
_TAG = "step"
_TAG_FORM = re.compile(_TAG + "[0-9]{1,18}")
#: A checkpoint that is being written (deepspeed/checkpoint/saving.py of overlay/).
_UNFINISHED = re.compile(_TAG_FORM.pattern + r"\.saving-[0-9a-f]{8}")


@dataclass(frozen=True)
class Kept:
    """What ``dsmoe.json`` of a folder says, and the step of its last checkpoint.

    ``text``: the paths, cap and field of the text; None in folders of before it was kept.
    """

    folder: Path
    case: Case
    content: str
    tokenizer: Path | None
    step: int
    text: dict[str, Any] | None = None


def tag_of(step: int) -> str:
    """The checkpoint's folder after ``step`` iterations."""
    return f"{_TAG}{step}"


def step_of(folder: Path) -> int | None:
    """The iterations that the last whole checkpoint in ``folder`` has; None where there is none.

    Raises ResultsError where the file that names it is not as dsmoe train writes it.
    """
    place = folder / LATEST
    try:
        tag = read_input(place).decode("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ResultsError(f"{place}: cannot be read ({words}); expected {_TAG}N") from error
    if not _TAG_FORM.fullmatch(tag):
        raise ResultsError(
            f"{place}: found {tag[:80]!r}, expected {_TAG}N as dsmoe train writes it; name a "
            "folder of dsmoe train, or a new one"
        )
    return int(tag[len(_TAG) :])


def checkpoints(folder: Path) -> list[str]:
    """The names of the checkpoints that are there, whether ``latest`` names one or not."""
    found = [path.name for path in folder.glob("*") if _TAG_FORM.fullmatch(path.name)]
    return sorted(found, key=lambda name: int(name[len(_TAG) :]))


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """With ``folder`` made, and no other training in it. Raises Busy and ResultsError.

    Checkpoints that an ended training has not finished writing are removed, before and after: they
    are of no use, and may be what fills the disk.
    """
    # imported here: reading a folder needs no package
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / LOCK), timeout=0)
        lock.acquire()
    except Timeout:
        raise Busy(
            f"{folder}: another dsmoe train is at work there; wait for it to end, or name another "
            f"folder with --save (if none is, a killed one left {LOCK} there: remove it)"
        ) from None
    except OSError as error:
        raise _not_written(folder, error) from error
    try:
        _remove_unfinished(folder)
        yield
    finally:
        _remove_unfinished(folder)
        lock.release()


def _remove_unfinished(folder: Path) -> None:
    for path in list(folder.glob("*")):
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _not_written(folder: Path, error: OSError) -> ResultsError:
    return ResultsError(
        f"{folder}: cannot be written ({error.strerror}); expected a folder to write to"
    )


def describe(
    folder: Path,
    case: Case,
    content: str,
    tokenizer: str | None,
    text: dict[str, Any] | None = None,
) -> None:
    """Write ``dsmoe.json`` and the tokenizer; ``text``: keyword arguments of ``corpus.prepare``.

    The checkpoints that are there stay described as they were: what is written holds for later
    ones, which may never come. Raises ResultsError.
    """
    values: dict[str, Any] = {
        "format": FORMAT,
        "case": case.to_dict(),
        "content": content,
        "tokenizer": TOKENIZER if tokenizer else None,
        "text": {name: text[name] for name in TEXT_KEYS} if text else None,
    }
    done = step_of(folder)
    try:
        if done is not None:
            values = {**_described(folder, done), "next": {"after": done, **values}}
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer and json_file(tokenizer).resolve() != (folder / TOKENIZER).resolve():
            shutil.copyfile(json_file(tokenizer), folder / TOKENIZER)
        write_atomically(folder / DESCRIPTION, (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise _not_written(folder, error) from error


def _described(folder: Path, step: int) -> dict[str, Any]:
    """What ``dsmoe.json`` says of the checkpoint after ``step`` iterations, unchecked."""
    values: dict[str, Any] = json.loads(read_input(folder / DESCRIPTION))
    later = values.pop("next", None)
    return later if later is not None and step > later.pop("after") else values


def read_kept(folder: Path) -> Kept:
    """What is in ``folder``. Raises UsageError for another one, ResultsError for a broken one."""
    place = folder / DESCRIPTION
    if not place.is_file():
        raise UsageError(
            f"{folder}: found no {DESCRIPTION}; expected a folder that dsmoe train --save wrote"
        )
    step = step_of(folder)
    try:
        values = _described(folder, step or 0)
        case, content = Case.from_dict(values["case"]), str(values["content"])
        tokenizer = folder / values["tokenizer"] if values["tokenizer"] else None
        text = values.get("text")
        text = None if text is None else {name: text[name] for name in TEXT_KEYS}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        UsageError,
    ) as error:
        raise ResultsError(
            f"{place}: cannot be read ({error}); expected what dsmoe train writes"
        ) from error
    if step is None:
        raise UsageError(
            f"{folder}: found no finished checkpoint (no file {LATEST}); train again with --save"
        )
    check_files(folder, tag_of(step))
    return Kept(folder, case, content, tokenizer, step, text)


def check_files(folder: Path, tag: str) -> None:
    """Raises ResultsError where the checkpoint ``tag`` is not there, or lacks a file that its
    manifest lists; whether the files are whole is seen when they are read."""
    # .former: a process was killed between two renames; loading finds it
    places = [place for place in (folder / tag, folder / f"{tag}.former") if place.is_dir()]
    if not places:
        there = checkpoints(folder)
        what = f"write its name there: {', '.join(there)}" if there else "copy the folder anew"
        raise ResultsError(
            f"{folder / LATEST}: found {tag}, and no such folder beside it; expected a checkpoint "
            f"that is there; {what}"
        )
    try:
        lines = read_input(places[0] / MANIFEST).decode("utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ResultsError(f"{places[0] / MANIFEST}: cannot be read ({error})") from error
    names = [line.partition("  ")[2] for line in lines if not line.startswith("#")]
    missing = [name for name in names if not is_file(places[0] / name)]
    if missing:
        raise ResultsError(
            f"{places[0] / missing[0]}: found no such file, expected it as {MANIFEST} lists it; "
            f"copy the checkpoint anew, or write the name of another one into {folder / LATEST}"
        )


def tokenizer_to_go_on(folder: Path, named: str | None) -> str | None:
    """The tokenizer of a training that goes on from ``folder``: its own, whether named or not.

    Raises UsageError where ``named`` is another one.
    """
    own = read_kept(folder).tokenizer
    if named is None:
        return str(own) if own else None
    place = json_file(named)
    if own is None or (place.is_file() and _content(place) != _content(own)):
        raise UsageError(
            f"--tokenizer {named}: found another tokenizer than that of {folder} "
            f"({own or 'bytes'}); leave it out, the checkpoint's is taken"
        )
    return named


def _content(path: Path) -> bytes:
    try:
        return read_large(path)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror})") from error
