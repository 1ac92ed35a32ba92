"""Runs the launch command, and ends all its processes when one host fails."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Mapping

from .errors import LaunchError
from .lifeline import dies_with_parent

END_SECONDS = 10.0
_HOST_ENDED = re.compile(
    rb"pdsh@[^:]*: ([^:]+): ssh (exited with exit code|killed by signal) (\d+)\s*"
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(command: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run ``command``; the return code is 128 + the signal that ended it or this process.

    pdsh keeps the other hosts running when one fails, and returns 0 when an ssh was killed. This
    function reads its messages instead: the first failed host ends all, and gives the return code.
    """
    state = _State()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if not (number == signal.SIGHUP and handler == signal.SIG_IGN):  # nohup
            signal.signal(number, state.on_signal)
    try:
        code = _run(command, dict(env), state)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(command, code)


class _State:
    def __init__(self) -> None:
        self.number: int | None = None
        self.failed: int | None = None

    def on_signal(self, number: int, frame: Any) -> None:
        self.number = number

    def on_line(self, line: bytes) -> None:
        found = _HOST_ENDED.match(line)
        if found is None or self.failed is not None:
            return
        host, how, code = found.group(1).decode(), found.group(2).decode(), int(found.group(3))
        exited = how.startswith("exited")
        lost = " (the login was refused or lost)" if exited and code == 255 else ""
        print(
            f"deepspeed: error: host {host}: {how} {code}{lost}; ending all hosts",
            file=sys.stderr,
            flush=True,
        )
        self.failed = code if exited else 128 + code

    @property
    def ends(self) -> bool:
        return self.number is not None or self.failed is not None


def _run(command: list[str], env: dict[str, str], state: _State) -> int:
    pdsh = Path(command[0]).name == "pdsh"
    # pdsh gets no Ctrl-C of the terminal: it is ended here, by the one signal on which it ends
    # its ssh processes (each is in a session of its own).
    try:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL if pdsh else None,
            stderr=subprocess.PIPE if pdsh else None,
            start_new_session=pdsh,
            preexec_fn=dies_with_parent(signal.SIGINT if pdsh else signal.SIGTERM),
        )
    except OSError as error:  # E2BIG for one: all hosts are one argument of at most 128 KiB
        raise LaunchError(
            f"{command[0]} cannot be started: {error.strerror}; expected fewer hosts, or a "
            "program that runs here"
        ) from None
    reader = threading.Thread(target=_relay, args=(process.stderr, state), daemon=True)
    if pdsh:
        reader.start()
    while process.poll() is None and not state.ends:
        time.sleep(0.1)
    if process.poll() is None:
        _end(process, signal.SIGINT if pdsh else signal.SIGTERM)
    if pdsh:
        reader.join(timeout=1.0)
    if state.number is not None:
        return 128 + state.number
    code = process.returncode
    return state.failed or (code if code >= 0 else 128 - code)


def _relay(stream: Any, state: _State) -> None:
    for line in stream:
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
        state.on_line(line)


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    for this in (number, signal.SIGKILL):
        process.send_signal(this)
        try:
            process.wait(timeout=END_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
