"""A folder of checkpoints as ``dsmoe train`` writes it, and what it says of itself.

``dsmoe.json`` (the case, the text, the tokenizer), ``tokenizer.json`` (where the text was not
taken by bytes), a folder ``stepN`` for each checkpoint, ``latest`` with the name of the last whole
one, and ``runs/`` with the logs.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.data.tokenizer import json_file
from dsmoe.common.errors import ResultsError, UsageError
from dsmoe.common.files import read_input, read_large, write_atomically

DESCRIPTION = "dsmoe.json"
TOKENIZER = "tokenizer.json"
LATEST = "latest"
FORMAT = 1
TEXT_KEYS = ("paths", "cap", "field")
_TAG = "step"
_TAG_FORM = re.compile(_TAG + "[0-9]{1,18}")


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


def describe(
    folder: Path,
    case: Case,
    content: str,
    tokenizer: str | None,
    text: dict[str, Any] | None = None,
) -> None:
    """Write ``dsmoe.json`` and the tokenizer; ``text``: keyword arguments of ``corpus.prepare``.

    Raises ResultsError.
    """
    values = {
        "format": FORMAT,
        "case": case.to_dict(),
        "content": content,
        "tokenizer": TOKENIZER if tokenizer else None,
        "text": {name: text[name] for name in TEXT_KEYS} if text else None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer and json_file(tokenizer).resolve() != (folder / TOKENIZER).resolve():
            shutil.copyfile(json_file(tokenizer), folder / TOKENIZER)
        write_atomically(folder / DESCRIPTION, (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise ResultsError(
            f"{folder}: cannot be written ({error.strerror}); expected a folder to write to"
        ) from error


def read_kept(folder: Path) -> Kept:
    """What is in ``folder``. Raises UsageError for another one, ResultsError for a broken one."""
    place = folder / DESCRIPTION
    if not place.is_file():
        raise UsageError(
            f"{folder}: found no {DESCRIPTION}; expected a folder that dsmoe train --save wrote"
        )
    try:
        values: dict[str, Any] = json.loads(read_input(place))
        case, content = Case.from_dict(values["case"]), str(values["content"])
        tokenizer = folder / values["tokenizer"] if values["tokenizer"] else None
        text = values.get("text")
        text = None if text is None else {name: text[name] for name in TEXT_KEYS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise ResultsError(
            f"{place}: cannot be read ({error}); expected what dsmoe train writes"
        ) from error
    step = step_of(folder)
    if step is None:
        raise UsageError(
            f"{folder}: found no finished checkpoint (no file {LATEST}); train again with --save"
        )
    return Kept(folder, case, content, tokenizer, step, text)


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
