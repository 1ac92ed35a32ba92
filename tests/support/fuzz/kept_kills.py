"""Kills over the saving of checkpoints and over whole runs, and what is there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import psutil

from dsmoe.benchmark.results.store import RECORDS, check_agreement, read_records
from dsmoe.model.checkpoint_folder import LATEST, step_of
from support.benchmark_runs import command
from support.ranks import Pool, run_ranks

SAVED = {"model": {"num_experts": 4}, "stage": 2, "optimizer": "AdamW"}
#: A variable by which every process of a run is found, whoever its parent is by then.
MARK = "DSMOE_TEST_RUN"
END_SECONDS = 60.0
VICTIMS = ("command", "a process", "all")


def save_kills(folder: Path, count: int, dice: random.Random) -> Iterator[str]:
    """``count`` kills over the saving of checkpoints; yields what is wrong, and "" for each."""
    for number in range(count):
        place = folder / f"s{number}"
        place.mkdir(parents=True)
        processes = dice.choice((1, 1, 2))
        scenario = {**SAVED, "expert_parallel": processes}
        last = killed_save(place, scenario, processes, dice.uniform(0.0, 1.0), dice)
        results = run_ranks(processes, "loads_whole_or_before", scenario, str(place / "folder"))
        step, whole = results[0]
        # ``latest`` can name a tag that is saved again, whose newer save has taken its place
        good = all(one == results[0] for one in results) and whole and last <= step <= last + 1
        yield "" if good else f"save: step {last} was saved, then {results} was loaded"
        shutil.rmtree(place)


def killed_save(
    place: Path, scenario: dict[str, Any], processes: int, delay: float, dice: random.Random
) -> int:
    """SIGKILL one process, then all, after ``delay`` s of saving; the last step saved."""
    pool = Pool(processes)
    try:
        pool.start("save_for_ever", (scenario, str(place / "folder")))
        deadline = time.monotonic() + 120
        while not (place / "saved").exists():
            assert time.monotonic() < deadline, pool.said()
            time.sleep(0.05)
        time.sleep(delay)
        rank = dice.randrange(processes)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((place / f"pid{rank}").read_text()), signal.SIGKILL)
        time.sleep(0.2 if processes > 1 else 0.0)
    finally:
        pool.close()
    said = (place / "saved").read_text()
    assert re.fullmatch(r"\d+", said)
    return int(said)


def run_kills(folder: Path, count: int, dice: random.Random) -> Iterator[str]:
    """``count`` kills over dsmoe run and dsmoe train; yields what is wrong, and "" for each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 200)
    longest: dict[str, float] = {}
    done = number = 0
    while done < count:
        number += 1
        name = dice.choice(("run", "train"))
        place = folder / f"{name}{number}"
        begin = time.monotonic()
        process = _start(name, place)
        if name not in longest:
            process.communicate()
            longest[name] = time.monotonic() - begin
            assert process.returncode == 0, f"dsmoe {name} ended with {process.returncode}"
            continue
        time.sleep(dice.uniform(0.3, longest[name]))
        victim = dice.choice(VICTIMS)
        if process.poll() is None and _kill(process, place, victim):
            done += 1
            yield _run_end(name, place, victim, process)
        process.communicate()
        shutil.rmtree(place, ignore_errors=True)


def _start(name: str, place: Path, *more: str) -> subprocess.Popen[str]:
    options = ["1", "--data", str(place.parent / "text.txt"), *more]
    if name == "run":
        options += ["--output", str(place)]
    elif not more:
        options += ["--save", str(place), "--steps", "12", "--every", "1"]
    return subprocess.Popen(
        [*command(name), "{}", *options],
        env={**os.environ, MARK: str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _members(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get(MARK) == str(place)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _kill(started: subprocess.Popen[str], place: Path, victim: str) -> bool:
    others = [p for p in _members(place) if p.pid != started.pid]
    if victim == "a process" and not others:
        return False  # there is none yet
    victims = [others[-1]] if victim == "a process" else [psutil.Process(started.pid)]
    for process in [*victims, *(others if victim == "all" else [])]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return True


def _run_end(name: str, place: Path, victim: str, process: subprocess.Popen[str]) -> str:
    """ "" if nothing runs on, the folder says what happened, and the next command goes on."""
    what = f"{name}, {victim} killed"
    try:
        said, _ = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"{what}: the command did not end within {END_SECONDS:g} s"
    if "Traceback" in said or (victim == "a process" and said.count("error:") > 1):
        return f"{what}: {said[-600:]}"
    deadline = time.monotonic() + END_SECONDS
    while (left := _members(place)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        names = [" ".join(one.cmdline())[-80:] for one in left]
        return f"{what}: after {END_SECONDS:g} s there are still {names}"
    for file in sorted(place.glob("runs/*/*.json")):
        try:
            json.loads(file.read_text())
        except ValueError:
            return f"{what}: {file.name} is not whole"
    for log in place.glob("runs/*/iterations.jsonl"):
        for line in log.read_text().split("\n")[:-1]:
            json.loads(line)
    return _next_run(what, place) if name == "run" else _next_training(what, place)


def _next_run(what: str, place: Path) -> str:
    """The rows agree, a failed one has its reason, and the next run adds its own."""
    rows = check_agreement(place) if (place / RECORDS).exists() else 0
    for record in read_records(place / RECORDS) if rows else []:
        if record.status != "ok" and not record.reason:
            return f"{what}: a failed row without a reason"
    if "a process" in what and rows != 1 and list(place.glob("runs/*/case.json")):
        return f"{what}: the command lived, and wrote {rows} rows"
    again = _start("run", place)
    said, _ = again.communicate(timeout=300)
    if again.returncode or check_agreement(place) != rows + 1:
        return f"{what}: the next run ended with {again.returncode}: {said[-400:]}"
    return ""


def _next_training(what: str, place: Path) -> str:
    """The last checkpoint is whole: the training goes on from it; without one, a new one begins."""
    step = step_of(place) if (place / LATEST).exists() else None
    more = ["--load", str(place), "--steps", f"{step + 2}"] if step else []
    again = _start("train", place, *more)
    said, _ = again.communicate(timeout=300)
    if again.returncode or step_of(place) != (step + 2 if step else 12):
        return f"{what} after step {step}: going on ended with {again.returncode}: {said[-400:]}"
    return ""
