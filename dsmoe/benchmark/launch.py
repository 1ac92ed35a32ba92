"""Start a run through DeepSpeed's own launcher, watch it, and end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

from dsmoe.benchmark.run_folder import FAILURE, ITERATIONS, LOG, IterationLog, read_json

POLL_SECONDS = 0.1
STOP_SECONDS = 10
PRETRAIN = Path(__file__).with_name("pretrain.py")


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(checkout: Path, run_dir: Path, processes: int, port: int) -> list[str]:
    """The launcher's command for ``processes`` processes on this machine."""
    return [
        sys.executable,
        str(checkout / "bin" / "ds"),
        "--num_gpus",
        str(processes),
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(port),
        str(PRETRAIN),
        "--run-dir",
        str(run_dir),
    ]


def environment(checkout: Path, processes: int) -> dict[str, str]:
    """The environment of the launcher: the patched DeepSpeed first, the cores shared out."""
    env = dict(os.environ)
    paths = [str(checkout), *filter(None, [env.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    env["PYTHONUNBUFFERED"] = "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    env.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // processes)))
    if "GLOO_SOCKET_IFNAME" not in env and "lo" in (name for _, name in socket.if_nameindex()):
        # gloo looks up this machine's name, which need not resolve to an address of its own.
        env["GLOO_SOCKET_IFNAME"] = "lo"
    return env


class Outcome:
    """How a run ended: ``code`` of the launcher (0 is good) and, if it failed, the reason."""

    def __init__(self, code: int, reason: str | None) -> None:
        self.code = code
        self.reason = reason


def run(
    args: list[str],
    env: dict[str, str],
    run_dir: Path,
    on_iteration: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Run the launcher to its end; every new iteration is handed on as it is written.

    All output goes to ``log.txt`` in the run folder. An interrupt or an error here ends all the
    processes that were started before it goes on.
    """
    iterations = IterationLog(run_dir / ITERATIONS)
    with (run_dir / LOG).open("wb") as log, _own_group(args, env, log) as process:
        while True:
            code = process.poll()
            for line in iterations.new_lines():
                on_iteration(line)
            if code is not None:
                break
            time.sleep(POLL_SECONDS)
    if code == 0:
        return Outcome(0, None)
    return Outcome(code, _reason(run_dir, code))


@contextlib.contextmanager
def _own_group(args: list[str], env: dict[str, str], log: Any) -> Iterator[subprocess.Popen]:
    """A process in a session of its own, all of whose processes are gone afterwards."""
    process = subprocess.Popen(
        args, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _reason(run_dir: Path, code: int) -> str:
    """Why the run failed: what the process itself said, else the last error in its log."""
    if (run_dir / FAILURE).is_file():
        return str(read_json(run_dir / FAILURE)["reason"])
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    text = (run_dir / LOG).read_text(encoding="utf-8", errors="replace")
    errors = [
        line.strip()
        for line in text.splitlines()
        if "Error" in line.split(":", 1)[0] and "CalledProcessError" not in line
    ]
    said = f": {errors[-1][:300]}" if errors else ""
    return f"the training processes ended with {how}{said} (see {run_dir / LOG})"
