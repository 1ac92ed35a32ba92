"""What the processes of the tests of a checkpoint's manifest do."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from support.refusal_probes import load_result
from support.scenarios import end, full, start_engine, train_steps, whole_weights


def load_results(
    scenario: dict[str, Any], folder: str, changes: list[list[Any]]
) -> list[list[str]]:
    """load_result after each of ``changes`` of files, each of which is undone again.

    A change is (path, position, bits) of a byte, (path, None) to remove, (path, other) to swap.
    """
    return [_changed(scenario, folder, change) for change in changes]


def _changed(scenario: dict[str, Any], folder: str, change: list[Any]) -> list[str]:
    path = Path(change[0])
    paths = [path, Path(change[1])] if isinstance(change[1], str) else [path]
    kept = [p.read_bytes() for p in paths]
    dist.barrier()
    if dist.get_rank() == 0:
        if len(paths) == 2:
            paths[0].write_bytes(kept[1])
            paths[1].write_bytes(kept[0])
        elif change[1] is None:
            path.unlink()
        else:
            data = bytearray(kept[0])
            data[change[1]] ^= change[2]
            path.write_bytes(data)
    dist.barrier()
    result = load_result(scenario, folder, {"tag": path.parent.name})
    dist.barrier()
    if dist.get_rank() == 0:
        for p, data in zip(paths, kept):
            p.write_bytes(data)
    dist.barrier()
    return result


def _digest(engine: Any) -> str:
    weights = whole_weights(engine.module)
    return hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights.values())).hexdigest()


def save_for_ever(scenario: dict[str, Any], folder: str) -> None:
    """Train and save, every second time under a tag that is saved again, until it is killed.

    Beside ``folder``, ``pidN`` is the process of rank N and ``saved`` the last step whose save has
    returned.
    """
    scenario = full({**scenario, "steps": 4})
    engine = start_engine(scenario)
    place = Path(folder).parent
    (place / f"pid{dist.get_rank()}").write_text(str(os.getpid()))
    while True:
        train_steps(engine, scenario, engine.global_steps % 4, engine.global_steps % 4 + 1)
        step = engine.global_steps
        tag = "again" if step % 4 else f"step{step}"
        engine.save_checkpoint(folder, tag=tag, client_state={"weights": _digest(engine)})
        if dist.get_rank() == 0:
            (place / "saving").write_text(str(step))
            (place / "saving").replace(place / "saved")


def loads_whole_or_before(scenario: dict[str, Any], folder: str) -> list[Any]:
    """The step that ``latest`` gives, and whether the weights are those of that step."""
    scenario = full({**scenario, "seed": 99})
    engine = start_engine(scenario)
    path, state = engine.load_checkpoint(folder)
    same = path is not None and state["weights"] == _digest(engine)
    result = [engine.global_steps, same]
    end(engine)
    return result
