"""Real benchmark runs for the tests: ``dsmoe run`` in a process of its own, on a tiny case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import psutil

from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.rows import read_rows
from dsmoe.benchmark.results.store import RECORDS, ROWS, check_agreement, read_records
from dsmoe.benchmark.run.processes import session_members

# A machine under load takes its time to start and to train.
START_SECONDS = 300
# ``dsmoe run`` with a suite of tiny cases; the checkout is taken as it is (support/patched.py).
# A shell starts background jobs with SIGINT ignored; the tests shall not depend on that.
COMMAND = """
import dataclasses, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dsmoe import cli
from dsmoe.benchmark.cases import suites
from dsmoe.benchmark.cases.case import Case, ModelCase, Parallel
from dsmoe.benchmark.run import patched_deepspeed
model = ModelCase("tiny", 16, 2, 2, num_heads=2, sequence_length=16, vocab_size=260)
base = Case("tiny", model, Parallel(1), 4, 1, "fp32", remat=False, dropout=0.0, iterations=5)
changes = json.loads(sys.argv[1])
base = dataclasses.replace(base, model=dataclasses.replace(model, **changes.pop("model", {})))
base = dataclasses.replace(base, **changes)
two = dataclasses.replace(base, parallel=Parallel(2, 2))
suites.SUITES["tiny"] = (base, two)
patched_deepspeed.ensure = lambda path, say=print: None
sys.exit(cli.main(["{name}", *sys.argv[2:], "--suite", "tiny"]))
"""


def command(name: str) -> list[str]:
    """The start of a command line: ``dsmoe NAME`` with the tiny suite, then changes as JSON."""
    return [sys.executable, "-c", COMMAND.replace("{name}", name)]


class StartedRun:
    """A started ``dsmoe run``; ``output`` is its results folder. Needs the fixture checkout."""

    def __init__(
        self,
        output: Path,
        *options: str,
        changes: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.output = output
        self.said = ""
        text = output.parent / "text.txt"
        if not text.exists():
            text.write_text("All work and no play makes Jack a dull boy.\n" * 200)
        places = [] if "--data" in options else ["--data", str(text)]
        self.process = subprocess.Popen(
            [*command("run"), json.dumps(changes or {}), *options, *places]
            + ["--output", str(output)],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, found: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
        """What ``found`` returns as soon as it is true; fails with the output if it never is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = found()
            if value:
                return value
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"not within {seconds} s: {self.process.communicate()}")

    def wait_for_iterations(self, count: int = 2) -> None:
        def written() -> bool:
            logs = list(self.output.glob("runs/*/iterations.jsonl"))
            return bool(logs) and logs[0].read_bytes().count(b"\n") >= count

        self.wait_for(written)

    def launcher(self) -> int:
        """The launcher's process id, which is that of its session."""
        children = psutil.Process(self.process.pid).children()
        [launcher] = [child.pid for child in children if os.getsid(child.pid) == child.pid]
        return launcher

    def ranks(self) -> list[int]:
        """The ids of the training processes, by local rank."""
        found = {}
        for pid in session_members(self.launcher()):
            words = psutil.Process(pid).cmdline()
            rank = [word for word in words if word.startswith("--local_rank=")]
            if rank and any(word.endswith("train/training_process.py") for word in words[:4]):
                found[rank[0]] = pid
        return [found[key] for key in sorted(found)]

    def end(self, seconds: float = START_SECONDS) -> str:
        """Wait for the end; all that was printed."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self.said = out + err
        return self.said

    @property
    def code(self) -> int:
        return self.process.returncode

    def records(self) -> list[RunRecord]:
        """The records, each with its row."""
        found = read_records(self.output / RECORDS)
        assert check_agreement(self.output) == len(found) == len(read_rows(self.output / ROWS))
        return found

    def failure(self) -> str:
        """The reason of the only run, which must have a row with -1."""
        [record] = self.records()
        [row] = read_rows(self.output / ROWS)
        assert (record.status, row.value["tflops"]) == ("failed", -1)
        assert row.value["reason"] == record.reason
        return record.reason or ""
