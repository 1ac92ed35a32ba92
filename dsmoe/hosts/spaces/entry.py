"""Stands for ssh and pdsh between hosts of namespaces, where these programs are not installed.

Installed as ``ssh`` and ``pdsh`` (:func:`install`), it enters the namespaces of the host and gives
the command to a shell there: a launcher in each namespace. It knows what this project asks of
the two: ``ssh OPTIONS [--] HOST COMMAND`` and ``pdsh -S -b -f N -w A,B COMMAND``, with pdsh's %h
and %n, its host names before every line, its message for a host that failed, and its end on
SIGINT. Imports the standard library alone, since its text is what is installed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Mapping

HOSTS = "hosts.json"
# Options of ssh that take a word.
_WITH_WORD = ("-o", "-p", "-l", "-i", "-F")


def install(folder: Path, hosts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put both programs into ``folder``. ``hosts``: name -> its ``enter`` (the words before a
    command), ``address`` and ``environment``."""
    folder.mkdir(parents=True)
    (folder / HOSTS).write_text(json.dumps({name: dict(host) for name, host in hosts.items()}))
    for name in ("ssh", "pdsh"):
        program = folder / name
        program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text(encoding='utf-8')}")
        program.chmod(0o755)


def start(host: Mapping[str, Any], command: str, **more: Any) -> subprocess.Popen[bytes]:
    """``command`` in a shell on ``host``, in a session of its own."""
    connection = f"{host['address']} 1 {host['address']} 22"
    environment = {**os.environ, **host["environment"], "SSH_CONNECTION": connection}
    words = [*host["enter"], "sh", "-c", command]
    return subprocess.Popen(words, env=environment, start_new_session=True, **more)


def ssh(words: list[str], hosts: Mapping[str, Any]) -> int:
    """Run one command on one host, with this process's input and output."""
    while words and words[0].startswith("-"):
        first = words.pop(0)
        if first == "--":
            break
        if first in _WITH_WORD:
            words.pop(0)
    if not words or words[0] not in hosts:
        print(f"ssh: no host {' '.join(words[:1])}; known: {', '.join(hosts)}", file=sys.stderr)
        return 255
    process = start(hosts[words[0]], " ".join(words[1:]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: _end([process], 128 + number))
    return process.wait()


def pdsh(words: list[str], hosts: Mapping[str, Any]) -> int:
    """Run one command on several hosts; the largest of their exit codes."""
    at = words.index("-w")
    names, command = words[at + 1].split(","), " ".join(words[at + 2 :])
    running: list[subprocess.Popen[bytes]] = []
    codes: list[int] = []

    def one(number: int, name: str) -> None:
        known = {"%h": name, "%n": str(number), "%u": "root", "%%": "%"}
        line = re.sub("%.", lambda found: known.get(found[0], found[0]), command)
        process = start(
            hosts[name],
            line,
            stdin=subprocess.PIPE,  # open as long as this process lives, as a connection is
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        running.append(process)
        assert process.stdout is not None
        for text in process.stdout:
            os.write(1, f"{name}: ".encode() + text)  # at once: lines of several hosts stay whole
        code = process.wait()
        if code:
            how = f"exited with exit code {code}" if code > 0 else f"killed by signal {-code}"
            os.write(2, f"pdsh@{os.uname().nodename}: {name}: ssh {how}\n".encode())
        codes.append(code if code >= 0 else 128 - code)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: _end(running, 1))
    threads = [
        threading.Thread(target=one, args=(number, name), daemon=True)
        for number, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(codes) if "-S" in words else 0


def _end(running: list[subprocess.Popen[bytes]], code: int) -> None:
    """End the shells of all hosts, as the end of a connection would, and this process."""
    for process in running:
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
    os._exit(code)


if __name__ == "__main__":
    here = Path(sys.argv[0])
    table = json.loads(here.with_name(HOSTS).read_text())
    sys.exit((pdsh if here.name == "pdsh" else ssh)(sys.argv[1:], table))
