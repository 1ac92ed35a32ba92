"""Folders of trained models, for evaluate, generate, export and train --load: good and bad ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.model import checkpoint_folder as kept

NAMES = [
    *(f"models/{name}" for name in ("good", "null", "list", "deep", "kinds", "case", "huge")),
    *(f"models/{name}" for name in ("digits", "square", "utf", "pipe", "link", "none", "zip")),
    *(f"exported/{name}" for name in ("good", "null", "deep", "kinds", "model", "sizes", "cut")),
    *(f"exported/{name}" for name in ("pipe", "header", "precision", "tokenizer")),
]


def make(root: Path) -> None:
    """``root/models`` (of dsmoe train) and ``root/exported`` (of dsmoe export)."""
    case = find_case("smoke", 2)
    good: dict[str, Any] = {
        "format": 1,
        "case": case.to_dict(),
        "content": "x",
        "tokenizer": None,
    }
    model = {**good["case"]["model"], "hidden_size": "x", "layers": -1, "num_experts": 10**30}
    descriptions: dict[str, str] = {
        "good": json.dumps(good),
        "null": "null",
        "list": "[1, 2]",
        "deep": "[" * 100_000,
        "kinds": json.dumps({**good, "tokenizer": 7, "content": []}),
        "case": json.dumps({**good, "case": {**good["case"], "model": model}}),
        "huge": json.dumps({**good, "case": {**good["case"], "seed": 10**400}}),
        "digits": json.dumps(good),
        "square": json.dumps(good),
        "utf": json.dumps(good),
        "pipe": json.dumps(good),
        "link": json.dumps({**good, "tokenizer": "../../fifo"}),
        "none": json.dumps(good),
        "zip": json.dumps(good),
    }
    latest = {"digits": b"step" + b"9" * 5000, "square": "step²".encode(), "utf": b"\xff\xfe"}
    for name, text in descriptions.items():
        folder = root / "models" / name
        (folder / "step3").mkdir(parents=True)
        (folder / kept.DESCRIPTION).write_text(text)
        (folder / kept.LATEST).write_bytes(latest.get(name, b"step3\n"))
        content = b"PK\x03\x04" if name == "zip" else b"\x80\x02garbage"
        _write(folder / "step3" / "mp_rank_00_model_states.pt", content)
    (root / "models/none" / kept.LATEST).unlink()
    (root / "models/pipe" / kept.LATEST).unlink()
    (root / "models/pipe" / kept.LATEST).symlink_to("../../fifo")
    _exported(root / "exported", case.model_settings())


def _write(path: Path, content: bytes) -> None:
    """``content``, and zeros until the file could hold the weights of the smallest model."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(4 << 20)


def _exported(root: Path, sizes: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "architecture": "MoELM",
        "precision": "fp32",
        "model": sizes,
        "tokenizer": None,
        "iterations": 3,
        "content": "x",
    }
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 4]}}).encode()
    for name, text in (
        ("good", json.dumps(values)),
        ("null", "null"),
        ("deep", "[" * 100_000),
        ("kinds", json.dumps({**values, "tokenizer": 7, "precision": []})),
        ("model", json.dumps({**values, "model": [1]})),
        ("sizes", json.dumps({**values, "model": {**sizes, "hidden_size": 0, "vocab_size": "a"}})),
        ("cut", json.dumps(values)[:100]),
        ("pipe", json.dumps(values)),
        ("header", json.dumps(values)),
        ("precision", json.dumps({**values, "precision": "fp7"})),
        ("tokenizer", json.dumps({**values, "tokenizer": "../../fifo"})),
    ):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text)
        whole = struct.pack("<Q", len(header)) + header + bytes(4)
        _write(folder / "model.safetensors", whole if name == "header" else b"\xff" * 100)
    (root / "pipe/model.safetensors").unlink()
    (root / "pipe/model.safetensors").symlink_to("../../fifo")
