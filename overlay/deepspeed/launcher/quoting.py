"""Text sent to other hosts: a command for their shells, the variables of ``.deepspeed_env``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Iterable, Iterator, Mapping, Sequence

from .errors import LaunchError

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def remote_command(
    folder: str,
    exports: Mapping[str, str],
    words: Sequence[str],
    user_words: Iterable[str],
) -> str:
    """One line for the login shell of every host, in which only ``%n`` of ``words`` is special.

    pdsh replaces ``%n`` by the host's number; every other ``%`` is doubled. ``exec`` makes sshd the
    parent of the process, so that the process detects the end of the connection (lifeline.py).
    """
    variables = [f"{key}={value}" for key, value in exports.items()]
    before = [_word(word) for word in ["exec", "env", *variables]]
    own = [word if word == "--node_rank=%n" else _word(word) for word in words]
    after = [_word(word) for word in user_words]
    return f"cd {_word(folder)} && {' '.join(before + own + after)}"


def _word(text: str) -> str:
    return shlex.quote(text).replace("%", "%%")


def environment_files(folders: Sequence[str], name: str) -> Iterator[tuple[str, str]]:
    """The variables of the files ``name`` in ``folders``, in order; missing files are skipped."""
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            yield from read_environment_file(path).items()


def read_environment_file(path: Path) -> dict[str, str]:
    """``KEY=VALUE`` a line; blank lines and lines that start with ``#`` are skipped.

    The value is everything after the first ``=``, without surrounding blanks and without one pair
    of quotes around the whole. Raises LaunchError with file and line.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        lines = stream.read().splitlines()
    result: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not _KEY.fullmatch(key):
            raise LaunchError(f"{path}:{number}: found {line[:60]!a}, expected KEY=VALUE")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        result[key] = value
    return result
