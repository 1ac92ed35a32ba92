"""A stand-in for pdsh, for tests of the launcher where no host is at hand.

It knows ``-S -b -f N -w A,B COMMAND``: replaces %h, %n and %% as pdsh 2.34 does, gives COMMAND to
a shell once a host, here, marks each line with the host, reports an "ssh" that failed as pdsh
does, and ends on SIGINT alone its shells. Its argv goes to the file $PDSH_LOG, a JSON line a call.
The environment plans what a host does: ``PDSH_HOST_<number>`` is ``denied`` (no login), ``hang``
(no answer), ``exit N`` or ``signal N`` (how its ssh ends, once it has run); ``PDSH_REACHED`` is
the SSH_CONNECTION.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path


def install(folder: Path) -> dict[str, str]:
    """Put the stand-in into ``folder``/bin as pdsh; the variables that make it the one found.

    Beside it an ssh that answers as the base asks, with an interface that no other host reaches
    as its first word: nothing here contacts a host, patched or not.
    """
    program = folder / "bin" / "pdsh"
    program.parent.mkdir(exist_ok=True)
    ssh = program.with_name("ssh")
    ssh.write_text("#!/bin/sh\necho 172.17.0.1 203.0.113.1\n")
    ssh.chmod(0o755)
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PDSH_LOG": str(folder / "pdsh.log"),
        "PDSH_REACHED": "203.0.113.99 1 203.0.113.1 22",
    }


def calls(variables: dict[str, str]) -> list[list[str]]:
    """The argument lists of all calls."""
    log = Path(variables["PDSH_LOG"])
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _replaced(command: str, host: str, number: int) -> str:
    known = {"%h": host, "%n": str(number), "%%": "%", "%u": "root"}
    return re.sub("%.", lambda found: known.get(found[0], found[0]), command)


def _say(stream: int, line: str) -> None:
    os.write(stream, line.encode())  # one write, so that lines of several hosts stay whole


def _host(host: str, number: int, command: str, shells: list, codes: dict) -> None:
    plan = os.environ.get(f"PDSH_HOST_{number}", "").split()
    if plan == ["denied"]:
        _say(2, f"{host}: root@{host}: Permission denied (publickey).\n")
        _say(2, f"pdsh@here: {host}: ssh exited with exit code 255\n")
        codes[host] = 255
        return
    if plan == ["hang"]:
        threading.Event().wait()
    environment = {**os.environ, "SSH_CONNECTION": os.environ["PDSH_REACHED"]}
    shell = subprocess.Popen(
        ["sh", "-c", _replaced(command, host, number)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    shells.append(shell)
    for line in shell.stdout or ():
        _say(1, f"{host}: {line}")
    code = shell.wait()
    if plan and "deepspeed-reached" not in command:
        code = int(plan[1]) if plan[0] == "exit" else -int(plan[1])
    if code:
        how = f"exited with exit code {code}" if code > 0 else f"killed by signal {-code}"
        _say(2, f"pdsh@here: {host}: ssh {how}\n")
    codes[host] = max(code, 0)


def main() -> int:
    words = sys.argv[1:]
    with Path(os.environ["PDSH_LOG"]).open("a") as log:
        log.write(json.dumps(words) + "\n")
    hosts = words[words.index("-w") + 1].split(",")
    command = " ".join(words[words.index("-w") + 2 :])
    shells: list = []
    codes: dict = {}

    def end(number: int, frame: object) -> None:
        for shell in shells:
            os.killpg(shell.pid, signal.SIGTERM)
        os._exit(1)

    signal.signal(signal.SIGINT, end)
    threads = [
        threading.Thread(target=_host, args=(host, number, command, shells, codes), daemon=True)
        for number, host in enumerate(hosts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(codes.values()) if "-S" in words else 0


if __name__ == "__main__":
    sys.exit(main())
