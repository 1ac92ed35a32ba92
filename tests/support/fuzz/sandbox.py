"""The files of a case: good ones, and every bad kind that somebody has met."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
from pathlib import Path
from typing import Any

from dsmoe.benchmark.results.store import append
from support.fuzz import models
from support.records import failure, record

#: Names in a sandbox, and a few of the system that nothing may change.
NAMES = [
    *[
        "good",
        "cpu",
        "empty",
        "file",
        "fifo",
        "socket",
        "closed",
        "closed/x",
        "shut",
        "loop",
        "dangling",
        "to-zero",
        "to-fifo",
        "to-file",
        "huge",
        "garbage",
        "good.tsv",
        "bad/int",
        "bad/time",
        "bad/half",
        "bad/deep",
        "bad/kinds",
        "bad/list",
        "bad/utf",
        "bad/empty",
        "bad/null",
        "hosts/good",
        "hosts/twice",
        "hosts/utf16",
        "hosts/none",
        "hosts/long",
        "tok/word",
        "tok/none",
        "tok/list",
        "tok/cut",
        "text.txt",
        "text",
        "pair",
        "pair.bin",
        "checkout",
        "checkout/lib",
        "project/bases",
        "project/bad-json",
        "project/bad-series",
        "project/bad-patch",
        "conv/good",
        "conv/list",
        "conv/kinds",
        "conv/curve",
        "conv/null",
        "new",
        "new/below",
        "file/below",
        "mutant",
        "~",
        "~none/x",
        "*.txt",
        "[",
        "mutant/results_e2e.jsonl",
        "-",
        ".",
        "..",
        "/proc",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/proc/none/x",
        "/proc/self/mem",
        "artifact-ids",
    ],
    "",
    "a\nb",
    "é",
    "\udcff",
    "x" * 300,
    "x/" * 2100,
    *models.NAMES,
]
DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]


def make(root: Path, project: Path, checkout: Path) -> None:
    """Fill ``root``. ``project`` and ``checkout``: a project folder and a clone to be copied."""
    for name in ("empty", "closed", "bad", "hosts", "tok", "text", "home", "tmp", "bin", "conv"):
        (root / name).mkdir()
    _results(root)
    (root / "file").write_text("one\n")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as made, contextlib.suppress(OSError):
        here = Path.cwd()
        os.chdir(root)  # a socket's name is short
        made.bind("socket")
        os.chdir(here)
    (root / "shut").write_text("{}\n")
    for name, target in (
        ("loop", "loop"),
        ("dangling", "none"),
        ("to-zero", "/dev/zero"),
        ("to-fifo", "fifo"),
        ("to-file", "file"),
    ):
        (root / name).symlink_to(target)
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (root / "garbage").write_bytes(random.Random(1).randbytes(5000))
    _hosts(root / "hosts")
    _tokenizers(root / "tok")
    (root / "text.txt").write_text("a text of some words\n" * 200)
    (root / "text/one.py").write_text("x = 1\n" * 500)
    (root / "text/two.py").write_text("y = 2\n" * 500)
    (root / "pair.bin").write_bytes(bytes(100))
    (root / "pair.idx").write_bytes(b"MMIDIDX\0\0" + bytes(50))
    _convergence(root / "conv")
    models.make(root)
    for name in ("ssh", "pdsh", "nvidia-smi", "scontrol", "ray"):
        (root / "bin" / name).write_text("#!/bin/sh\necho no >&2\nexit 1\n")
        (root / "bin" / name).chmod(0o755)
    shutil.copytree(project, root / "project", symlinks=True)
    shutil.copytree(checkout, root / "checkout", symlinks=True)
    for bad, name, content in (
        ("bad-json", "base.json", b'{"name": [], "commit": 7}'),
        ("bad-series", "series", b"\xff\xfe\n../../x\n"),
        ("bad-patch", "base.json", b"[" * 9999),
    ):
        shutil.copytree(root / "project/bases", root / "project" / bad)
        (root / "project" / bad / "syn" / name).write_bytes(content)


def _results(root: Path) -> None:
    for gpus in (1, 2):
        append(root / "cpu", record("smoke", gpus))
        append(root / "good", record("smoke", gpus))
    append(root / "good", record("artifact", 8, "cuda"))
    append(root / "good", failure())
    shutil.copy(root / "good/results_e2e.tsv", root / "good.tsv")
    good = json.loads(record().to_json())
    lines = {
        "int": json.dumps({**good, "parameter_count": 10**400}),
        "time": json.dumps({**good, "time_stamp": 1e18}),
        "half": json.dumps({**good, "reason": "\ud800"}),
        "deep": json.dumps({**good, "hardware": {"a": DEEP}}),
        "kinds": json.dumps({**good, "case": {**good["case"], "model": 3}}),
        "list": "[" * 100_000,
        "utf": "\udcff",
        "empty": "",
        "null": "null",
    }
    for name, line in lines.items():
        folder = root / "bad" / name
        folder.mkdir()
        for file in ("results_e2e.jsonl", "results_e2e.tsv"):
            (folder / file).write_text(line + "\n", errors="surrogateescape")


def _hosts(folder: Path) -> None:
    for name, content in (
        ("good", b"127.0.0.1 slots=2\n"),
        ("twice", b"a slots=2\na slots=2\n"),
        ("utf16", "a slots=1\n".encode("utf-16")),
        ("none", b"\n# nothing\n"),
        ("long", b"a" * 70_000 + b" slots=1\n"),
    ):
        (folder / name).write_bytes(content)


def _tokenizers(folder: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "<unk>"}
    whole = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "word").write_text(json.dumps(whole))
    (folder / "none").write_text(json.dumps({**whole, "model": {**model, "vocab": {}}}))
    (folder / "list").write_text("[]")
    (folder / "cut").write_text(json.dumps(whole)[:70])


def _convergence(folder: Path) -> None:
    point = {"tokens": 5, "held_out_loss": 1.5}
    run = {"status": "ok", "arm": "moe", "seed": 1, "identity": {}}
    good = {"schema": 1, "common": {"setting": {}}, "runs": {"moe-1": run}}
    for name, summary, curve in (
        ("good", good, json.dumps(point)),
        ("list", [], ""),
        ("kinds", {**good, "runs": {"moe-1": 4}, "common": {"setting": []}}, ""),
        ("curve", good, '{"tokens": "x"}\n['),
        ("null", None, ""),
    ):
        (folder / name).mkdir()
        (folder / name / "summary.json").write_text(json.dumps(summary))
        (folder / name / "moe-1.jsonl").write_text(curve)


def mutate(root: Path, seed: int) -> None:
    """A folder ``mutant``: result files and a summary with a few bytes changed by ``seed``."""
    dice = random.Random(seed)
    folder = root / "mutant"
    folder.mkdir(exist_ok=True)
    for source in ("good/results_e2e.jsonl", "good/results_e2e.tsv", "conv/good/summary.json"):
        data = bytearray((root / source).read_bytes())
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            if dice.random() < 0.3:
                del data[at : at + dice.randint(1, 40)]
            elif dice.random() < 0.5:
                data[at] = dice.randrange(256)
            else:
                data[at:at] = dice.choice([b"9" * 400, b"null", b"\n", b"[", b'"', b"-", b"e999"])
            data = data or bytearray(b"\n")
        (folder / Path(source).name).write_bytes(data)


def owned_by(root: Path, user: int) -> None:
    """Give the sandbox to ``user``, except two things that are closed to it."""
    for path in (root, *root.rglob("*")):
        os.lchown(path, user, user)
    for name, mode in (("closed", 0o700), ("shut", 0o600)):
        os.chown(root / name, 0, 0)
        (root / name).chmod(mode)
