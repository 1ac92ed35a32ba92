"""All-to-all: exchange of tokens between the processes of an expert parallel group.

DeepSpeed's ``_AllToAll`` is an autograd function around an in-place collective. torch.compile of
torch 2.11 traces into it and loses the gradient behind it, without an error: the experts are then
not trained. As an operator of our own the exchange is opaque to the compiler. It goes in two steps
where expert_hosts.py says so; the gradient goes the same way.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.expert_hosts import levels_for
from deepspeed.moe.kernels.policy import HAS_OPERATORS
from deepspeed.moe.sharded_moe import _AllToAll
from deepspeed.utils import groups
from torch import Tensor


def group_name(group: Any) -> str | None:
    """The name by which an operator finds ``group``; None where torch has no custom operators."""
    return getattr(group, "group_name", None) if HAS_OPERATORS else None


def all_to_all(x: Tensor, name: str | None) -> Tensor:
    """Part p of the first dimension goes to process p; what comes from p is part p of the result.

    Args:
        x: of one shape on all processes, its first dimension a multiple of their number.
        name: of the expert parallel group (:func:`group_name`).
    """
    if name is None or x.is_meta:
        return _AllToAll.apply(groups.get_expert_parallel_group(), x)
    return _exchange(x.contiguous(), name)


def send_to_experts(x_ERM: Tensor, num_local_experts: int, name: str | None) -> Tensor:
    """This process's rows to the processes of their experts; [E, R, M] to [D, P R, M]."""
    rows, width = x_ERM.shape[1:]
    x_PDRM = all_to_all(x_ERM, name).reshape(-1, num_local_experts, rows, width)
    return x_PDRM.transpose(0, 1).reshape(num_local_experts, -1, width)


def return_from_experts(y_DPRM: Tensor, rows: int, name: str | None) -> Tensor:
    """The inverse of :func:`send_to_experts`; [D, P R, M] to [E, R, M]."""
    local, _, width = y_DPRM.shape
    y_DPRM = y_DPRM.reshape(local, -1, rows, width)
    return all_to_all(y_DPRM.transpose(0, 1).reshape(-1, rows, width), name)


def _swap_parts(x: Tensor, group: Any) -> Tensor:
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


if HAS_OPERATORS:
    # torch reads the annotations when the operator is made, so they cannot be strings.
    def _exchange_now(x, name):  # type: ignore[no-untyped-def]
        group = dist.distributed_c10d._resolve_process_group(name)
        levels = levels_for(group)
        if levels is None:
            return _swap_parts(x, group)
        each = x.shape[0] // (levels.hosts * levels.near)
        parts = x.view(levels.hosts, levels.near, each, *x.shape[1:])
        parts = _swap_parts(parts.transpose(0, 1).contiguous(), levels.inside)
        parts = _swap_parts(parts.transpose(0, 1).contiguous(), levels.between)
        return parts.view_as(x)

    _exchange_now.__annotations__ = {"x": Tensor, "name": str, "return": Tensor}
    _exchange = torch.library.custom_op("dsmoe::all_to_all", _exchange_now, mutates_args=())
    _exchange.register_fake(lambda x, name: torch.empty_like(x))

    def _remember(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[1]

    def _back(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad.contiguous(), ctx.name), None

    _exchange.register_autograd(_back, setup_context=_remember)
