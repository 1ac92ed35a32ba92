"""Kills and Ctrl-Cs at random moments, and what is there afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

from dsmoe.benchmark.results.store import RECORDS, append, check_agreement, read_records
from support import ROOT
from support.patch_project import BASE_FILES, Project, git, read_files, result_files
from support.records import record

#: Commands that a Ctrl-C is sent to; they end by themselves, and train nothing.
COMMANDS = (
    "plot none",
    "report none",
    "bench --table none",
    "hosts --hosts 127.0.0.1:2 --dry-run",
    "run 1 --dry-run",
    "plan 1 --suite none",
    "check --hostfile none",
    "converge --plot-only --output none",
    "profile 1 --write none/x",
    "apply none --status",
    "train 1 --save none --steps 1 --print-sbatch",
    "evaluate none",
    "generate none text",
    "export none --to none/x",
    "calibrate --output none/x",
    "defects",
    "defects --against none",
    "--version",
)
SCRIPTS = ("apply_patch.py none", "get_hostfiles.py --hosts 127.0.0.1:2 --dry-run")


def forked(work: Callable[[], object]) -> int:
    """Start ``work`` in a child of its own process group; its process id."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            work()
        os._exit(0)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    return child


def kill_at(work: Callable[[], object], delay: float) -> bool:
    """Run ``work`` in a child and kill it with all that it started; False if it had ended."""
    child = forked(work)
    time.sleep(delay)
    ended = os.waitpid(child, os.WNOHANG)[0] != 0
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return not ended


def patch_kills(template: Project, folder: Path, count: int, dice: random.Random) -> Iterator[str]:
    """``count`` kills over apply, revert and export; yields what is wrong, and "" for each kill."""
    place, root = folder / "checkout", folder / "project"
    project = Project(root, template.upstream)
    longest: dict[str, float] = {}
    for what in ("apply", "--revert", "--export"):
        shutil.copytree(template.root, root, symlinks=True)
        project.clone(place)
        if what != "apply":
            project.main(place)
        if what == "--export":
            (place / "lib/a.py").write_bytes((place / "lib/a.py").read_bytes() + b"an edit\n")
            (place / "lib/new/more.py").write_bytes(b"more = 1\n")
        for path in (place, root):
            shutil.copytree(path, folder / f"{what}-{path.name}", symlinks=True)
        begin = time.monotonic()  # how long it takes, for the moments to be drawn from
        os.waitpid(forked(lambda w=what: project.main(*_words(place, w))), 0)  # type: ignore[misc]
        longest[what] = time.monotonic() - begin
        for path in (place, root):
            shutil.rmtree(path)
    done = 0
    while done < count:
        what = dice.choice(list(longest))
        for path in (place, root):
            shutil.copytree(folder / f"{what}-{path.name}", path, symlinks=True)
        delay = dice.uniform(0, 1.2 * longest[what])
        if kill_at(lambda w=what: project.main(*_words(place, w)), delay):  # type: ignore[misc]
            done += 1
            yield _patch_end(project, place, what)
        for path in (place, root):
            shutil.rmtree(path)


def _words(place: Path, what: str) -> list[str]:
    return [str(place), *([] if what == "apply" else [what])]


def _patch_end(project: Project, place: Path, what: str) -> str:
    """ "" if the next commands reach exactly the applied and then exactly the pristine tree."""
    if what == "--export":
        code, said = project.main(place, "--export")
        if not code and project.main(place, "--status")[0]:
            return f"{what}, killed, then again: {project.main(place, '--status')}"
        wanted = dict(result_files())
        assert isinstance(wanted["lib/a.py"], bytes)
        wanted["lib/a.py"] += b"an edit\n"
        wanted["lib/new/more.py"] = b"more = 1\n"
    else:
        code, said = project.main(place)
        wanted = result_files()
    if code or read_files(place) != wanted:
        return f"{what}, killed, then again: exit code {code}: {said[-300:]}"
    code, said = project.main(place, "--revert")
    left = git(place, "status", "--porcelain")
    if code or read_files(place) != BASE_FILES or left:
        return f"{what}, killed, then reverted: exit code {code}: {said[-300:]} {left}"
    odd = [p for p in (project.root, place) for p in p.rglob(".dsmoe-*")]
    return f"{what}: left {odd}" if odd else ""


def append_kills(folder: Path, count: int, dice: random.Random) -> Iterator[str]:
    """``count`` kills over the appending of rows; yields what is wrong, and "" for each kill."""
    run = record()
    for number in range(count):
        place = folder / f"r{number}"
        place.mkdir()
        reader, writer = os.pipe()

        def work(place: Path = place, writer: int = writer) -> None:
            while True:
                append(place, run)
                os.write(writer, b".")

        kill_at(work, dice.uniform(0.0, 0.3))
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            told = len(stream.read())
        append(place, run)
        there = check_agreement(place)
        whole = len(read_records(place / RECORDS))
        good = there == whole and told + 1 <= there <= told + 2
        yield "" if good else f"append: {told} rows were told, {there} are there"
        shutil.rmtree(place)


def interrupts(folder: Path, count: int, dice: random.Random) -> Iterator[str]:
    """``count`` Ctrl-Cs over all commands; yields what is wrong, "" or "before Python's own"."""
    tools = [[sys.executable, "-m", "dsmoe", *line.split()] for line in COMMANDS]
    tools += [[sys.executable, str(ROOT / s.split()[0]), *s.split()[1:]] for s in SCRIPTS]
    longest: dict[int, float] = {}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DSMOE_HOME": str(folder / "home")}
    done = 0
    while done < count:
        number = dice.randrange(len(tools))
        begin = time.monotonic()
        process = subprocess.Popen(
            tools[number],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        if number in longest:
            time.sleep(dice.uniform(0, longest[number]))
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        if number not in longest:
            longest[number] = time.monotonic() - begin
            continue
        done += 1
        yield _interrupt_end(" ".join(tools[number][1:]), process.returncode, err)


BEFORE = "before the first import of this project was done"


def _interrupt_end(line: str, code: int, err: str) -> str:
    # Until then the signal is Python's, which prints a traceback of its own start.
    # The import of startup.py, which takes the signal over, is the last of it.
    starting = str(ROOT) not in err or "from dsmoe.common import startup" in err
    own_start = "KeyboardInterrupt" in err and starting and "startup.py" not in err
    if own_start or (code == -signal.SIGINT and not err):
        return BEFORE
    told = sum(text.startswith("error:") for text in err.splitlines())
    good = code == 130 or told == (code != 0) or line.endswith("--status")
    if "Traceback" in err or not good or (code == 130 and told != 1):
        return f"{line}: exit code {code}, {err[-600:]}"
    return ""
