"""What the processes of the sharded runs of AdaFactor do.

They run every case over gloo and write, for each that they take part in, their partitions and what
a checkpoint would hold to FOLDER/<case>.<rank>.pt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from support.adafactor import NoWaiting, load_package, read_data
from support.sharded_cases import (
    CASES,
    Case,
    flat_size,
    flatten,
    group_tag,
    start_values,
    step_gradients,
)

adafactor = load_package()


def process_groups() -> dict[tuple[int, int], list[Any]]:
    """For (world, ep): the group that each rank partitions over, made on all ranks alike."""
    made = {}
    for case in CASES.values():
        for key in ((case.world, 1), (case.world, case.ep)):
            world, ep = key
            if key not in made:
                groups = [dist.new_group(list(range(e, world, ep))) for e in range(ep)]
                made[key] = [groups[rank % ep] for rank in range(world)]
    return made


def run(name: str, case: Case, rank: int, folder: Path, groups: Any) -> None:
    partitions, slots = [], []
    for index, group in enumerate(case.groups):
        ep = case.ep if group.expert else 1
        tag = group_tag(case, group, rank, groups[(case.world, ep)][rank])
        size = flat_size(group, tag.world_size)
        own = slice(tag.rank * tag.partition_size, (tag.rank + 1) * tag.partition_size)
        seed = (group, index, rank % ep)
        partition = flatten(start_values(*seed), size)[own].to(case.dtype, copy=True)
        partition.requires_grad_()
        setattr(partition, adafactor.TAG_ATTRIBUTE, tag)
        partitions.append({"params": [partition], **(group.options or {})})
        slots.append((partition, tag, seed, size, own))
    optimizer = adafactor.Adafactor(partitions, **case.options)
    optimizer.init_state()
    if case.resume:
        load(case, rank, folder, optimizer, slots)
    for step in range(case.start, case.stop):
        for partition, _, seed, size, own in slots:
            grad = flatten(step_gradients(*seed, step), size)[own]
            partition.grad = grad.to(case.dtype, copy=True)
            if step in case.no_grad:
                partition.grad = None
        with NoWaiting():
            optimizer.step()
    found = [
        (partition.detach(), adafactor.state_for_checkpoint(optimizer.state[partition], tag))
        for partition, tag, *_ in slots
    ]
    torch.save(found, folder / f"{name}.{rank}.pt")


def load(case: Case, rank: int, folder: Path, optimizer: Any, slots: Any) -> None:
    """Restore weights and state from the files of another number of processes."""
    old = CASES[case.resume]
    files = [read_data(folder / f"{case.resume}.{r}.pt") for r in range(old.world)]
    states = files[::-1] if case.reverse_files else files
    for index, (partition, tag, _, size, own) in enumerate(slots):
        flat = torch.cat([file[index][0] for file in files])
        with torch.no_grad():
            partition.copy_(torch.cat([flat, flat.new_zeros(size)])[:size][own])
        optimizer.state[partition] = adafactor.load_state_from_checkpoint(
            [file[index][1] for file in states], tag, partition, "beta1" in case.options
        )


def sharded_runs(folder: str) -> None:
    """All cases, in a pool of MAX_WORLD processes."""
    rank, groups = dist.get_rank(), process_groups()
    for name, case in CASES.items():
        if rank < case.world:
            run(name, case, rank, Path(folder), groups)
        dist.barrier()
    # none is left with threads that wake all the time
    for group in {id(g): g for made in groups.values() for g in made}.values():
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(group)
