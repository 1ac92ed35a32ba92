"""Names, finds and removes namespaces. As a script: the guardian that removes them at the end.

``python guardian.py OWNER`` reads standard input, whose other end the owner holds, until that
closes (so also when the owner is killed), and then removes everything of OWNER. What a killed
guardian leaves is removed by the next :func:`sweep_dead`. Only names that carry a dead owner's
process id and start time are touched. Imports the standard library alone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "dsmoe"
RUN_NETNS = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")
KILL_SECONDS = 10
# ip, tc and ssh-keygen answer at once.
TOOL_SECONDS = 20.0
TIMED_OUT = 124


def tool(name: str) -> str | None:
    """The path of a program, also where PATH lacks the folders of root's programs."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def run_tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of :func:`tool`. One that takes too long is ended, with status TIMED_OUT."""
    command = [tool(name) or name, *words]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # Files, because a pipe would be waited for as long as a child of the program has it.
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=TOOL_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            said = f"{command[0]} did not end within {TOOL_SECONDS:g} s, and was ended"
            return subprocess.CompletedProcess(command, TIMED_OUT, "", said)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return subprocess.CompletedProcess(command, code, *texts)


def ip(*words: str) -> str:
    """What ``ip WORDS`` prints. Raises CalledProcessError."""
    done = run_tool("ip", *words)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout


def owner_of(pid: int) -> str | None:
    """PID and start time: the name of a process that no later one shares; None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{pid}-{fields[19]}"


def space_of(owner: str, name: str) -> str:
    """The name of a network namespace of ``owner``."""
    return f"{PREFIX}-{owner}-{name}"


def processes(space: str) -> list[tuple[int, str]]:
    """Process ids and command lines of all that runs in a network namespace."""
    found = []
    for pid in map(int, ip("netns", "pids", space).split()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found.append((pid, b" ".join(words).decode("utf-8", "replace")))
    return found


def sweep(owner: str) -> None:
    """Remove the namespaces of ``owner``, all that runs in them, and their files."""
    pattern = space_of(owner, "*")
    for space in sorted({p.name for f in (RUN_NETNS, ETC_NETNS) for p in f.glob(pattern)}):
        if (RUN_NETNS / space).exists():
            deadline = time.monotonic() + KILL_SECONDS
            while (alive := processes(space)) and time.monotonic() < deadline:
                for pid, _ in alive:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                time.sleep(0.05)
            # its veth pairs go with it
            run_tool("ip", "netns", "del", space)
        shutil.rmtree(ETC_NETNS / space, ignore_errors=True)
    if ETC_NETNS.is_dir() and not any(ETC_NETNS.iterdir()):
        ETC_NETNS.rmdir()


def sweep_dead() -> None:
    """Remove what the clusters of processes that are gone have left."""
    for folder in (RUN_NETNS, ETC_NETNS):
        for path in folder.glob(space_of("*-*", "*")):
            found = re.fullmatch(rf"{PREFIX}-((\d+)-\d+)-\w+", path.name)
            if found and owner_of(int(found[2])) != found[1]:
                sweep(found[1])


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    sweep(sys.argv[1])
