"""Outside programs (nvidia-smi, scontrol, ssh), each with a limit of seconds."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any, Sequence


class TimedOut(Exception):
    """A program took too long, and was ended; ``str(error)`` names it and the limit."""


def ask(
    command: Sequence[str],
    seconds: float,
    text: str = "",
    first_word: tuple[str, float] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` with ``text`` as its input; its output as text, whatever bytes it holds.

    ``first_word`` is a piece of text and seconds: it must be in the output by then. Raises
    TimedOut after ``seconds``, when the program is ended, and OSError where it cannot be started.
    Ctrl-C in a terminal reaches the program too.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    data: bytes | None = text.encode()
    try:
        if first_word is not None:
            word, limit = first_word
            try:
                out, err = process.communicate(data, timeout=limit)
                return _done(command, process, out, err)
            except subprocess.TimeoutExpired as late:
                if word.encode() not in (late.output or b""):
                    raise TimedOut(f"{command[0]} gave no answer within {limit:g} s") from None
            data, seconds = None, seconds - limit
        out, err = process.communicate(data, timeout=seconds)
        return _done(command, process, out, err)
    except subprocess.TimeoutExpired:
        total = seconds + (first_word[1] if first_word else 0.0)
        raise TimedOut(f"{command[0]} did not end within {total:g} s") from None
    finally:
        end(process)


def end(process: Any) -> None:
    """End a process if it still runs; what it started, and that has its output, is not waited for.

    ``process`` is a Popen or behaves like one.
    """
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _done(
    command: Sequence[str], process: subprocess.Popen[bytes], out: bytes, err: bytes
) -> subprocess.CompletedProcess[str]:
    decoded = [data.decode("utf-8", "replace") for data in (out, err)]
    return subprocess.CompletedProcess(list(command), process.returncode, *decoded)
