"""The convergence comparison: sizes for tests, and the files of one that was made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsmoe.commands import converge
from dsmoe.convergence import curve_files
from dsmoe.convergence.arms import ARMS, ArmSetting

TINY = (
    "--hidden-size 16 --num-layers 2 --num-heads 2 --sequence-length 16 --num-experts 4 "
    "--global-batch 8 --micro-batch-size 4"
)
SHORT = f"{TINY} --steps 6 --eval-every 4 --eval-windows 16".split()


def default_setting(device: str) -> ArmSetting:
    """The sizes of ``dsmoe converge`` without options on ``device``."""
    options = converge.make_parser("dsmoe converge").parse_args([])
    return converge.setting_of(options, device)


def words(name: str, lines: int = 40) -> str:
    """Lines of text that no other name has."""
    return "".join(f"a line of {name} that is long enough to count, {i}\n" for i in range(lines))


def recorded(output: Path) -> None:
    """The files of a comparison of all arms with two seeds, and one run that failed."""
    runs = {}
    for number, arm in enumerate(ARMS.values()):
        for seed in (1, 2):
            points = []
            for step in range(0, 101, 10):
                loss = 5.7 / (1 + step / 20) + 0.01 * number + 0.002 * seed
                point: dict[str, Any] = {
                    "iteration": step,
                    "tokens": 1000 * step,
                    "held_out_loss": loss,
                }
                if step:
                    layers = [] if arm.dense else [[0.5, 0.25, 0.25, 0.0], [0.25] * 4]
                    point.update(expert_load=layers, dropped_share=[0.1, 0.02][: len(layers)])
                points.append(point)
            name = curve_files.run_name(arm.name, seed)
            lines = "".join(json.dumps(point) + "\n" for point in points)
            (output / f"{name}.jsonl").write_text(lines)
            runs[name] = {
                "arm": arm.name,
                "seed": seed,
                "status": "ok",
                "device": {"device_name": "none"},
                "parameters": 10,
                "active_parameters": 5,
                "flops_per_token": 1e6,
                "tokens_per_second": 100.0,
                "held_out_loss": points[-1]["held_out_loss"],
                "held_out_loss_no_drop": points[-1]["held_out_loss"],
                "train_loss": 1.0,
            }
    runs["moe-3"] = {"arm": "moe", "seed": 3, "status": "failed", "reason": "out of memory"}
    common = {"setting": default_setting("cpu").to_dict(), "device": "cpu"}
    summary = {"schema": curve_files.SCHEMA, "common": common, "text": {}, "runs": runs}
    (output / curve_files.SUMMARY).write_text(json.dumps(summary))
