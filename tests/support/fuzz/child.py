"""One case in a forked child of this process, and what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from dsmoe import cli
from dsmoe.common.errors import EXIT_CODES

SECONDS = 20.0
NOBODY = 65534
#: How standard output and error are: as files, or as nobody should have them.
CHANNELS = ("files", "files", "files", "out full", "out gone", "out closed", "err closed", "ascii")


@dataclass
class Case:
    """A command line in a sandbox. ``user``: 0 or NOBODY; ``channel``: one of CHANNELS."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    user: int = 0
    channel: str = "files"


@dataclass
class End:
    code: int
    out: str
    err: str
    seconds: float


def run(case: Case, root: Path) -> End:
    """Run ``case`` in ``root``, killed after SECONDS."""
    out, err = root.parent / "out", root.parent / "err"
    for path in (out, err):
        path.touch()
        path.chmod(0o666)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = _inside(case, root, out, err)
        except BaseException:
            with contextlib.suppress(BaseException), err.open("a") as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(code)
    status = _wait(child, begin)
    seconds = time.monotonic() - begin
    texts = [path.read_bytes().decode("utf-8", "replace") for path in (out, err)]
    return End(status, texts[0], texts[1], seconds)


def _wait(child: int, begin: float) -> int:
    """The exit code; a child that takes too long is killed with all that it started."""

    def late(*_: object) -> None:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS + 1)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def _inside(case: Case, root: Path, out: Path, err: Path) -> int:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _streams(case.channel, out, err)
    for name in [n for n in os.environ if n.startswith(("DSMOE", "DEEPSPEED", "SLURM", "RAY"))]:
        del os.environ[name]
    os.environ.update(
        HOME=str(root / "home"),
        TMPDIR=str(root / "tmp"),
        DSMOE_HOME=str(root / "home/work"),
        DSMOE_DEEPSPEED=str(root / "checkout"),
        PATH=f"{root / 'bin'}:/usr/local/bin:/usr/bin:/bin",
    )
    for name, value in case.environment.items():
        with contextlib.suppress(ValueError):
            os.environ[name] = value
    import tempfile

    tempfile.tempdir = None
    os.chdir(root)
    words = case.words
    if words[0] == "apply" and "--bases" not in words:  # never the project's own patches
        words = [*words, "--bases", "project/bases"] if "--" not in words else ["apply"]
    if case.user:
        os.setgroups([])
        os.setgid(case.user)
        os.setuid(case.user)
    try:
        code = cli.main(words)
    except Reached:
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return code


class Reached(BaseException):
    """The command would begin its work now."""


def _streams(channel: str, out: Path, err: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    null = os.open(os.devnull, os.O_RDONLY)
    places = [null, os.open(out, flags, 0o666), os.open(err, flags, 0o666)]
    if channel == "out full":
        places[1] = os.open("/dev/full", os.O_WRONLY)
    elif channel == "out gone":
        reader, places[1] = os.pipe()
        os.close(reader)
    for number, place in enumerate(places):
        os.dup2(place, number)
    encoding = "ascii" if channel == "ascii" else "utf-8"
    made: list[Any] = [None, *(_text(number, encoding) for number in (1, 2))]
    for number, name in ((1, "out closed"), (2, "err closed")):
        if channel == name:
            os.close(number)
            made[number] = None
            from dsmoe.common import startup

            startup.open_streams()
    sys.stdout, sys.stderr = made[1:]


def _text(number: int, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), encoding=encoding)


def wrong(case: Case, end: End) -> str | None:
    """What a user should not have seen; None where all is well."""
    if end.seconds > SECONDS:
        return f"took {end.seconds:.0f} s"
    if "Traceback (most recent call last)" in end.err + end.out or "Exception ignored" in end.err:
        return "a traceback"
    if end.code not in EXIT_CODES:
        return f"exit code {end.code}"
    lines = [line for line in end.err.splitlines() if line.startswith("error:")]
    if len(lines) > 1 or (lines and end.code == 0):
        return f"{len(lines)} error lines with exit code {end.code}"
    states = case.words[0] == "check" or (case.words[0] == "apply" and "--status" in case.words)
    told = lines or case.channel == "err closed" or states
    if end.code not in (0, 1) and not told:
        return f"no error line with exit code {end.code}"
    return None


def stand_ins() -> list[tuple[str, str, Callable[..., Any]]]:
    """What a case must not do: train, plan for minutes, reach the network, patch this Python."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    return [
        ("dsmoe.benchmark.run.every_case", "run_cases", reached),
        ("dsmoe.benchmark.run.patched_deepspeed", "ensure", lambda *_, **__: None),
        ("dsmoe.convergence.comparison_run", "run_all", reached),
        ("dsmoe.benchmark.timing.speed", "run", reached),
        ("dsmoe.benchmark.plan.estimate", "estimate", reached),
        ("dsmoe.benchmark.calibrate.start_processes", "measured_rows", reached),
        ("dsmoe.model.kept_run", "prepare_text", reached),
        ("dsmoe.model.measured", "measure", reached),
        ("dsmoe.model.written", "write", reached),
        ("dsmoe.defects.against", "run_proofs", reached),
        ("dsmoe.defects.page", "page", reached),
        ("dsmoe.hosts.spaces.namespace_cluster", "HostCluster", reached),
        ("dsmoe.hosts.sources.local", "count_by_torch", lambda: (0, "no torch in the fuzzer")),
        ("dsmoe.patchset.sources.archive", "importable", lambda name: False),  # so no pip
        ("dsmoe.patchset.sources.installed", "apply", reached),
        ("dsmoe.patchset.sources.installed", "revert", reached),
        ("dsmoe.benchmark.preflight.local_checks", "import_check", reached),
    ]
