#!/usr/bin/env python3
"""Run the tests on several Pythons and torches, each in an environment of its own; write a table.

    python scripts/matrix.py               every stack whose Python is found here
    python scripts/matrix.py 3.9 oldest    these alone
    make test-matrix                       the first form

Environments are kept in build/matrix/. A Python is looked for as python3.X on PATH and among
pyenv's versions. The table goes to docs/reference/compatibility.md, between its two marks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dsmoe.common.packages.dependencies import requirements  # noqa: E402

PLACE = ROOT / "build" / "matrix"
TABLE = ROOT / "docs" / "reference" / "compatibility.md"
MARKS = ("<!-- matrix -->\n", "<!-- end of matrix -->\n")
#: What cannot work with the oldest torch: a test id a line, then "#" and the reason.
OLDEST_LEFT_OUT = ROOT / "tests" / "oldest.txt"
#: The folders that this tests; on base 0.5.4 the two files.
WHOLE = ["tests/engine"]
SHORT = ["tests/engine/test_compat.py", "tests/engine/test_parallel.py"]
BASES = {"bd3ebd": WHOLE, "0.5.4": SHORT}
#: Of the extra "dev": what the tests in those folders import.
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "tokenizers")


def listed(*extras: str, only: tuple[str, ...] = (), but: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The requirements of ``extras`` in pyproject.toml, as pip takes them."""
    found = requirements() + requirements(*extras)
    return tuple(str(r) for r in found if (not only or r.name in only) and r.name not in but)


@dataclass(frozen=True)
class Stack:
    """A Python and what is installed for it, in steps of pip."""

    name: str
    python: str
    steps: tuple[tuple[str, ...], ...]
    oldest: bool = False


TESTED = (listed("run", "torch"), ("-U", "setuptools>=65", *listed("dev", only=TOOLS)))
# Their metadata asks for a newer torch than they need.
PINNED = ("torch-optimizer", "pytorch-ranger")
OLDEST = (
    (
        "torch==1.10.2",
        "numpy<2",
        "setuptools>=65",
        *listed("run", but=("torch", "numpy", "setuptools", *PINNED)),
        *listed("dev", only=TOOLS[:-1]),
    ),
    ("--no-deps", *listed("run", only=PINNED)),
)
STACKS = (
    Stack("3.9", "3.9", TESTED),
    Stack("3.11", "3.11", TESTED),
    Stack("3.13", "3.13", TESTED),
    Stack("oldest", "3.8", OLDEST, oldest=True),
)


def find_python(version: str) -> str | None:
    """A python3.X that starts: on PATH, else the newest of pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    versions = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))) / "versions"
    candidates += [str(p / "bin/python") for p in sorted(versions.glob(f"{version}.*"))[::-1]]
    for candidate in candidates:
        if candidate and run([candidate, "-c", "import venv, ensurepip"]).returncode == 0:
            return candidate
    return None


def run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=str(ROOT), env=env, capture_output=True, text=True)


def prepare(stack: Stack, python: str) -> Path | str:
    """The environment's python; a reason where it cannot be made."""
    place = PLACE / f"py{stack.python}"
    stamp, wanted = place / "steps.json", json.dumps(stack.steps)
    ours = place / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted:
        return ours
    if not ours.exists():
        made = run([python, "-m", "venv", str(place)])
        if made.returncode:
            return f"no environment: {last_line(made.stderr)}"
    for step in stack.steps:
        print(f"   pip install {' '.join(step)}", flush=True)
        done = run([str(ours), "-m", "pip", "install", "-q", "--no-cache-dir", *step])
        if done.returncode:
            return f"pip: {last_line(done.stderr)}"
    stamp.write_text(wanted)
    return ours


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:120] if lines else "no message"


def left_out() -> list[str]:
    lines = OLDEST_LEFT_OUT.read_text(encoding="utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def test(stack: Stack, python: Path, base: str, tests: list[str]) -> str:
    """Run pytest; its last line, shortened, with the seconds."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    if stack.oldest:
        command += [part for name in left_out() for part in ("--deselect", name)]
    started = time.monotonic()
    environment = {**os.environ, "DSMOE_BASE": base, "OMP_NUM_THREADS": "1"}
    environment.pop("DSMOE_DEEPSPEED", None)
    done = run(command + tests, env=environment)
    log = PLACE / f"{stack.name}-{base}.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout.split("\n")[-2])
    words = ", ".join(f"{number} {what}" for number, what in counts) or last_line(done.stderr)
    return f"{words} ({time.monotonic() - started:.0f} s)"


def train(python: Path) -> str:
    """The benchmark's small model for a few steps through the launcher; first and last loss."""
    output = python.parents[1] / "run"
    shutil.rmtree(output, ignore_errors=True)
    command = [str(python), "-m", "dsmoe", "run", "1", "--steps", "10", "--output", str(output)]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("DSMOE_DEEPSPEED", "DSMOE_BASE")
    }
    done = run(command, env=environment)
    found = dict(re.findall(r"(first loss|last loss)\s+([0-9.]+)", done.stdout))
    if done.returncode or len(found) != 2:
        return f"exit {done.returncode}: {last_line(done.stderr or done.stdout)}"
    return f"{float(found['first loss']):.2f} to {float(found['last loss']):.2f}"


def row(stack: Stack) -> list[str]:
    """One line of the table."""
    python = find_python(stack.python)
    if python is None:
        return [stack.python, "", f"no python{stack.python} here", "", ""]
    print(f"== {stack.name}: {python}", flush=True)
    ours = prepare(stack, python)
    if isinstance(ours, str):
        return [stack.python, "", ours, "", ""]
    code = "import platform, torch; print(platform.python_version(), torch.__version__)"
    versions = run([str(ours), "-c", code])
    if versions.returncode:
        return [stack.python, "", f"torch: {last_line(versions.stderr)}", "", ""]
    cells: list[str] = versions.stdout.split()
    for base, tests in BASES.items():
        cells.append(test(stack, ours, base, tests))
        print(f"   {base}: {cells[-1]}", flush=True)
    cells.append(train(ours))
    print(f"   run: {cells[-1]}", flush=True)
    return cells


def minor(version: str) -> str:
    """3.9 of 3.9.18."""
    return ".".join(version.split(".")[:2])


def write_table(rows: list[list[str]]) -> None:
    """Put the rows into the page; a stack that was not run keeps its former row."""
    text = TABLE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    old, after = rest.split(MARKS[1])
    kept = {minor(line.split("|")[1].strip()): line for line in old.splitlines()[2:]}
    head = ["Python", "torch", "tests, bd3ebd", "tests, 0.5.4", "run: loss", "date"]
    for cells in rows:
        line = "| " + " | ".join([*cells, str(date.today())]) + " |"
        kept[minor(cells[0])] = line
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    order = [stack.python for stack in STACKS]
    lines += [kept[name] for name in order if name in kept]
    TABLE.write_text(before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after, "utf-8")
    print("\n".join(lines))


def main() -> int:
    wanted = sys.argv[1:] or [stack.name for stack in STACKS]
    unknown = set(wanted) - {stack.name for stack in STACKS}
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(s.name for s in STACKS)}")
        return 2
    PLACE.mkdir(parents=True, exist_ok=True)
    rows = [row(stack) for stack in STACKS if stack.name in wanted]
    write_table(rows)
    return 1 if any(bad(cells) for cells in rows) else 0


def bad(cells: list[str]) -> bool:
    """Whether a row says anything else than that all went well."""
    tests = cells[2 : 2 + len(BASES)]
    wrong = any("passed" not in cell or "failed" in cell or "error" in cell for cell in tests)
    return wrong or " to " not in cells[-1]


if __name__ == "__main__":
    sys.exit(main())
