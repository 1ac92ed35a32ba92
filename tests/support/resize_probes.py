"""What the processes of the tests of another number of processes do.

Every scenario trains on ``MICRO_BATCHES`` micro-batches a step, whatever the number of processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from support.scenarios import build, end, full, start_engine, train_steps, whole_weights

MICRO_BATCHES = 12


def _here(scenario: dict[str, Any]) -> dict[str, Any]:
    return full({**scenario, "accumulation": MICRO_BATCHES // dist.get_world_size()})


def save_at(scenarios: list[dict[str, Any]], folder: str, half: int) -> list[dict[str, Any]]:
    """Train ``half`` steps and save; then the losses and weights of the steps after it."""
    results = []
    for i, scenario in enumerate(map(_here, scenarios)):
        engine = start_engine(scenario)
        train_steps(engine, scenario, 0, half)
        engine.save_checkpoint(f"{folder}/{i}", tag="half")
        result = train_steps(engine, scenario, half, scenario["steps"])
        results.append({**result, "weights": whole_weights(engine.module)})
        end(engine)
    return results


def resume_at(
    scenarios: list[dict[str, Any]], folders: list[str], half: int, again: str | None
) -> list[dict[str, Any]]:
    """The same steps after loading into a model of other initial weights; saved in ``again``."""
    results = []
    for i, (scenario, folder) in enumerate(zip(map(_here, scenarios), folders)):
        engine = start_engine(scenario, build({**scenario, "seed": 99}))
        assert engine.load_checkpoint(folder, tag="half")[0] is not None
        if again:
            engine.save_checkpoint(f"{again}/{i}", tag="half")
        result = train_steps(engine, scenario, half, scenario["steps"])
        results.append({**result, "weights": whole_weights(engine.module)})
        end(engine)
    return results


def resize_error(scenario: dict[str, Any], folder: str) -> str:
    """What loading raises; empty if it loads."""
    scenario = _here(scenario)
    engine = start_engine(scenario)
    try:
        engine.load_checkpoint(folder, tag="half")
    except RuntimeError as error:
        return str(error)
    finally:
        end(engine)
    return ""


def paddings(scenario: dict[str, Any]) -> list[int]:
    """The elements of each saved partition of this process, as in its file."""
    engine = start_engine(_here(scenario))
    saved = engine.optimizer.state_dict()["single_partition_of_fp32_groups"]
    lengths = [partition.numel() for partition in saved]
    end(engine)
    return lengths


def same_files(one: str, other: str) -> list[str]:
    """Names of the files of ZeRO's state that differ between two checkpoints of one layout."""
    differ = []
    for path in sorted(Path(one, "half").glob("zero_pp_rank_*")):
        a, b = (torch.load(p, weights_only=False) for p in (path, Path(other, "half", path.name)))
        for key in ("single_partition_of_fp32_groups", "base_optimizer_state"):
            if not _equal(a["optimizer_state_dict"][key], b["optimizer_state_dict"][key]):
                differ.append(f"{path.name} {key}")
    return differ


def _equal(a: Any, b: Any) -> bool:
    if torch.is_tensor(a):
        return torch.is_tensor(b) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def save_stamped(scenario: dict[str, Any], folder: str) -> None:
    """Save a state of the optimizer that is a known function of the weights."""
    engine = start_engine(_here(scenario))
    train_steps(engine, _here(scenario), 0, 1)
    for held, expected in _stamps(engine.optimizer):
        held.copy_(expected)
    engine.save_checkpoint(folder, tag="half")
    end(engine)


def stamps_apart(scenario: dict[str, Any], folder: str) -> list[float]:
    """How far the loaded masters and state are from that function of the loaded weights."""
    scenario = _here(scenario)
    engine = start_engine(scenario, build({**scenario, "seed": 99}))
    engine.load_checkpoint(folder, tag="half")
    zero = engine.optimizer
    pairs = [*_stamps(zero), *zip(zero.single_partition_of_fp32_groups, _own_weights(zero))]
    apart = [float((held - expected).detach().abs().max()) for held, expected in pairs]
    end(engine)
    return apart


def _own_weights(zero: Any) -> list[torch.Tensor]:
    """This process's partition of the model's weights, of each group; masters in fp32."""
    bit16 = hasattr(zero, "parallel_partitioned_bit16_groups")
    name = "parallel_partitioned_bit16_groups" if bit16 else "parallel_partitioned_fp16_groups"
    ranks = [dist.get_rank(group=group) for group in zero.real_dp_process_group]
    return [parts[rank].float() for parts, rank in zip(getattr(zero, name), ranks)]


@torch.no_grad()
def _stamps(zero: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors of the optimizer's state, each with what it is to hold."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    given = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.fp16_groups
    for i, (weights, group) in enumerate(zip(_own_weights(zero), zero.optimizer.param_groups)):
        partition = group["params"][0]
        state = zero.optimizer.state[partition]
        if "factors" not in state:
            pairs.append((state["exp_avg"], weights * 2.0))
            pairs.append((state["exp_avg_sq"], weights.square()))
            continue
        for piece in partition.adafactor_tag.slices:
            units, rows, columns = piece.geometry
            cube = given[i][piece.param_id].float().view(units, rows, columns)
            cube = cube[slice(*piece.unit_range)].square()
            factors = state["factors"][piece.param_id]
            pairs.append((factors["col"], cube.mean(1).flatten()))
            if "row" in factors:
                pairs.append((factors["row"], cube.mean(2).flatten()))
    return pairs
