"""The sharded training runs that real processes make and the oracle repeats.

Data only. A case is a list of groups; ZeRO would give each group one flat partition a process.
Expert parallelism as DeepSpeed lays it out: of W processes, rank r holds the experts of
expert-parallel rank r % ep, partitioned over the ranks with the same r % ep.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

import torch
from torch import Tensor

from support.adafactor import gradients, load_package, random_tensors

STEPS = 12
MAX_WORLD = 4


class Group(NamedTuple):
    """Parameters of one group: shape and batch dimensions; ``pad`` is put at the flat end.

    ``options`` are the group's own, over those of the case.
    """

    shapes: Sequence[Sequence[int]]
    batch_dims: Sequence[int | None]
    expert: bool = False
    pad: int = 0
    options: dict[str, Any] | None = None


class Case(NamedTuple):
    """``world`` processes train ``groups`` from step ``start`` (a step of ``resume``) to ``stop``.

    At the steps in ``no_grad`` every gradient is None on every rank.
    """

    world: int
    groups: Sequence[Group]
    options: dict[str, Any]
    ep: int = 1
    start: int = 0
    stop: int = STEPS
    resume: str = ""
    no_grad: Sequence[int] = ()
    reverse_files: bool = False
    dtype: torch.dtype = torch.float64


DENSE = Group([(7, 5), (5,), (1, 4), (6, 3), (3,), (9, 2)], [None] * 6)
BIASES = Group([(3,), (6,), (5, 1), (2,)], [None] * 4, options={"weight_decay": 0.0})
EXPERTS = Group([(3, 4, 5), (3, 5), (3, 5, 4), (3, 1, 4)], [None, 1, None, None], expert=True)
TINY = Group([(3,)], [None], pad=5)
EVEN = Group([(2, 4), (2, 4), (4, 4)], [None] * 3)
APART = Group([(4, 2, 3)], [None], expert=True)
LONG = Group([(2, 3), (5, 7), (2,)], [None] * 3, pad=2)

FULL = {"lr": 0.05, "relative_step": False, "beta1": 0.8, "weight_decay": 0.05}
UNSCALED = {"lr": 0.02, "relative_step": False, "scale_parameter": False, "clip_threshold": 0.5}

CASES = {
    **{f"dense, {w}": Case(w, [DENSE], {}) for w in (1, 2, 3, 4)},
    **{f"experts, {w}": Case(w, [EXPERTS], {}) for w in (1, 2, 3, 4)},
    **{f"every group and option, {w}": Case(w, [DENSE, BIASES, EXPERTS], FULL) for w in (1, 2, 3)},
    "expert parallel, 2 of 4": Case(4, [EXPERTS, DENSE, LONG], FULL, ep=2),
    "expert parallel, 4 of 4": Case(4, [DENSE, EXPERTS], {"warmup_init": True}, ep=4),
    "only padding": Case(4, [TINY, LONG], {"weight_decay": 0.1}),
    "some ranks cut, some not": Case(4, [EVEN, APART], {"beta1": 0.9}),
    "fp32": Case(3, [DENSE, EXPERTS], FULL, dtype=torch.float32),
    "unscaled, padded": Case(4, [LONG, BIASES], UNSCALED),
    "warmup, decay": Case(3, [LONG, DENSE], {"warmup_init": True, "weight_decay": 0.1}),
    "steps without gradient": Case(3, [DENSE], FULL, no_grad=(3, 4)),
    "saved at 3": Case(3, [DENSE, EXPERTS], FULL, stop=5),
    "resumed at 2": Case(2, [DENSE, EXPERTS], FULL, start=5, stop=9, resume="saved at 3"),
    "resumed at 4": Case(
        4, [DENSE, EXPERTS], FULL, start=9, resume="resumed at 2", reverse_files=True
    ),
}


def group_seed(index: int, expert_rank: int) -> int:
    """The seed of a group's values and gradients; the experts of each rank are their own."""
    return 100_000 * index + 10_000 * expert_rank


def start_values(group: Group, index: int, expert_rank: int) -> list[Tensor]:
    return random_tensors(group.shapes, group_seed(index, expert_rank), 0.3)


def step_gradients(group: Group, index: int, expert_rank: int, step: int) -> list[Tensor]:
    return gradients(group.shapes, group_seed(index, expert_rank) + step)


def flat_size(group: Group, world: int) -> int:
    """Elements of the flat buffer over ``world`` processes: padded as ZeRO pads, and by ``pad``."""
    numel = sum(torch.Size(shape).numel() for shape in group.shapes) + group.pad
    return -(-numel // (2 * world)) * 2 * world


def flatten(tensors: Sequence[Tensor], size: int) -> Tensor:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    return torch.cat([flat, flat.new_zeros(size - flat.numel())])


def unflatten(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    found, position = [], 0
    for shape in shapes:
        numel = torch.Size(shape).numel()
        found.append(flat[position : position + numel].view(tuple(shape)))
        position += numel
    assert not flat[position:].any(), "padding was written to"
    return found


def group_tag(case: Case, group: Group, rank: int, process_group: Any = None) -> Any:
    """The tag of ``rank`` (of all the case's processes) for one group."""
    ep = case.ep if group.expert else 1
    world = case.world // ep
    return load_package().PartitionTag(
        group.shapes,
        flat_size(group, world) // world,
        rank // ep,
        world,
        process_group,
        group.batch_dims,
    )
