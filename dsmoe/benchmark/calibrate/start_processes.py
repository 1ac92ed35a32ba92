"""Starts the measuring processes and collects their rows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

from dsmoe.common.interrupts import StopSignals
from dsmoe.common.places import import_root

#: Seconds for the rates of one device, for the collectives, and what a start may take besides.
DEVICE_SECONDS, COLLECTIVE_SECONDS, START_SECONDS = 110.0, 45.0, 30.0
ROWS = "rows"


def measured_rows(
    device: str,
    processes: int,
    cores: int,
    folder: Path,
    say: Callable[[str], object],
    checkout: Path,
    stop: StopSignals,
) -> list[dict[str, Any]]:
    """Every row of one device, and of the collectives of ``processes``; errors are rows too.

    ``cores`` of a CPU are shared by its processes, as a run shares them: there the rates are
    measured once for each number of processes, while the others do the same, and a row says how
    many there were (``processes``). The layers are those of ``checkout``. Rows are added to a file
    in ``folder`` as they are measured. A signal of ``stop`` ends every process that was started.
    """
    file = folder / ROWS
    problems: list[dict[str, Any]] = []
    together = [1] if device == "cuda" else [n for n in (1, 2, 4, 8, 16) if n <= processes]
    for number in together:
        what = "one GPU" if device == "cuda" else f"the CPU in {number} process(es)"
        say(f"measuring {what}, up to 2 minutes")
        threads = max(1, cores // number)
        problems += _phase(device, number, False, DEVICE_SECONDS, threads, file, checkout, stop)
    if processes > 1:
        say(f"measuring collectives of {processes} processes, up to 1 minute")
        threads = max(1, cores // processes)
        problems += _phase(
            device, processes, True, COLLECTIVE_SECONDS, threads, file, checkout, stop
        )
    return [*read_rows(file), *problems]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of ``file``; the last line of a process that was ended may be no row."""
    rows = []
    for line in file.read_text(encoding="ascii").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _phase(
    device: str,
    world: int,
    collectives: bool,
    seconds: float,
    threads: int,
    file: Path,
    checkout: Path,
    stop: StopSignals,
) -> list[dict[str, Any]]:
    """Run one group of processes to its end, or to the limit; what went wrong, as rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen[str]] = []
    all_orders: list[tuple[str, dict[str, str]]] = []
    problems: list[dict[str, Any]] = []
    errors = file.with_name("errors")
    with errors.open("w") as said:
        for rank in range(world):
            orders = {"device": device, "rank": rank, "world": world, "seconds": seconds}
            orders.update(collectives=collectives, file=str(file) if rank == 0 else os.devnull)
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [str(checkout), str(import_root()), os.environ.get("PYTHONPATH")])
                ),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),  # as in a run
            }
            all_orders.append((json.dumps(orders), environment))
        try:
            for words, environment in all_orders:
                with stop.held():
                    process = subprocess.Popen(
                        [sys.executable, "-m", "dsmoe.benchmark.calibrate.measuring_process"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                        env=environment,
                        text=True,
                        start_new_session=True,  # Ctrl-C ends it from here
                    )
                    started.append(process)
                    assert process.stdin is not None
                    process.stdin.write(words)
                    process.stdin.close()
            for process in started:
                process.wait(seconds + START_SECONDS)
        except subprocess.TimeoutExpired:
            problems.append({"kind": "note", "error": f"ended after {seconds:g} s"})
        finally:
            for process in started:
                process.kill()
                process.wait()
    if any(process.returncode for process in started) and not problems:
        last = (errors.read_text(errors="replace").strip().splitlines() or ["no reason"])[-1]
        problems.append({"kind": "note", "error": f"a measuring process failed: {last[:300]}"})
    return problems
