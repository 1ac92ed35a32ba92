"""The experts of an expert parallel group with communication overlapped; custom operators.

In the forward pass the rows that stay on this process are in two halves: the first is computed
while the other processes' rows arrive, the second while results go back. In the backward pass the
gradients of the rows that stay are computed while the others arrive, and the weights' gradients
while those of the inputs go back. Rows are received where the products read them (with copy
engines, copy_engines.py, they are copied there from the inbox), so nothing is transposed.
Where the group spans hosts, expert_messages.py can send in two steps.
gshard/all_to_all.py with gshard/experts.py gives the same results but for the rounding of two
biases, and copies rows twice each way.

Shape suffixes: P processes of the group, D experts of this process, E = P D, R rows that one
process has for one expert, M model width, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .expert_messages import messages
from .gelu_product import down, up
from .linear import multiply_batch
from .policy import HAS_OPERATORS


def forward(
    x_ERM: Tensor, w1: Tensor, b1_DH: Tensor, w2: Tensor, b2_DM: Tensor, name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`exchanged_experts` outside of a graph; also what :func:`backward` needs."""
    local = w1.shape[0]
    x_PDRM = x_ERM.contiguous().view(-1, local, *x_ERM.shape[1:])
    processes, _, rows, width = x_PDRM.shape
    peers = messages(name, x_PDRM[0].nbytes)
    all_DPRM = x_ERM.new_empty(local, processes, rows, width)
    a_DPRH, h_DPRH = (x_ERM.new_empty(*all_DPRM.shape[:3], w1.shape[2]) for _ in range(2))
    y_PDRM, back_PDRM = torch.empty_like(x_PDRM), torch.empty_like(x_PDRM)

    def compute(x_DRM: Tensor, process: int, some: slice, y_DRM: Tensor) -> None:
        place = (slice(None), process, some)
        up(x_DRM[:, some], w1, b1_DH, False, (a_DPRH[place], h_DPRH[place]))
        multiply_batch(a_DPRH[place], w2, b2_DM, y_DRM[:, some])

    mine, half = peers.rank, rows // 2
    arrivals = peers.dispatch(x_PDRM, all_DPRM)
    compute(x_PDRM[mine], mine, slice(0, half), y_PDRM[mine])
    for arrived in arrivals:
        for p in arrived:
            compute(all_DPRM[:, p], p, slice(0, rows), back_PDRM[p])
    finish = peers.combine(back_PDRM, y_PDRM)
    compute(x_PDRM[mine], mine, slice(half, rows), y_PDRM[mine])
    finish()
    return y_PDRM.view_as(x_ERM), all_DPRM, a_DPRH, h_DPRH


def backward(
    dy_ERM: Tensor,
    all_DPRM: Tensor,
    a_DPRH: Tensor,
    h_DPRH: Tensor,
    w1: Tensor,
    w2: Tensor,
    name: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, w1, b1, w2 and b2, from that of the result."""
    dy_PDRM = dy_ERM.contiguous().view(-1, w1.shape[0], *dy_ERM.shape[1:])
    peers = messages(name, dy_PDRM[0].nbytes)
    dy_DPRM, dh_DPRH = torch.empty_like(all_DPRM), torch.empty_like(h_DPRH)
    dx_PDRM, back_PDRM = torch.empty_like(dy_PDRM), torch.empty_like(dy_PDRM)
    mine = peers.rank
    arrivals = peers.dispatch(dy_PDRM, dy_DPRM)
    sums = {mine: down(dy_PDRM[mine], w2, h_DPRH[:, mine], False, dh_DPRH[:, mine])[1]}
    for arrived in arrivals:
        for p in arrived:
            sums[p] = down(dy_DPRM[:, p], w2, h_DPRH[:, p], False, dh_DPRH[:, p])[1]
            torch.bmm(dh_DPRH[:, p], w1.transpose(1, 2), out=back_PDRM[p])
    finish = peers.combine(back_PDRM, dx_PDRM)
    torch.bmm(dh_DPRH[:, mine], w1.transpose(1, 2), out=dx_PDRM[mine])
    x_DrM, a_DrH, dh_DrH, dy_DrM = (t.flatten(1, 2) for t in (all_DPRM, a_DPRH, dh_DPRH, dy_DPRM))
    dw1 = torch.bmm(x_DrM.transpose(1, 2), dh_DrH)
    dw2 = torch.bmm(a_DrH.transpose(1, 2), dy_DrM)
    # in the order of the processes, whichever came first
    db1_DH, db2_DM = torch.stack([sums[p] for p in sorted(sums)]).sum(0), dy_DrM.sum(1)
    finish()
    return dx_PDRM.view_as(dy_ERM), dw1, db1_DH, dw2, db2_DM


if HAS_OPERATORS:
    _operator = torch.library.custom_op(
        "dsmoe::exchanged_experts",
        forward,
        mutates_args=(),
        schema="(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, str name)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
    )
    _backward_operator = torch.library.custom_op(
        "dsmoe::exchanged_experts_backward",
        backward,
        mutates_args=(),
        schema="(Tensor dy, Tensor x, Tensor a, Tensor h, Tensor w1, Tensor w2, str name)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    )

    @_operator.register_fake
    def _(x: Any, w1: Any, b1: Any, w2: Any, b2: Any, name: str) -> Any:
        local = w1.shape[0]
        rows = (local, x.shape[0] // local, x.shape[1])
        hidden = [x.new_empty(*rows, w1.shape[2]) for _ in range(2)]
        return x.new_empty(x.shape), x.new_empty(*rows, x.shape[2]), *hidden

    @_backward_operator.register_fake
    def _(dy: Any, x: Any, a: Any, h: Any, w1: Any, w2: Any, name: str) -> Any:
        biases = [x.new_empty(w1.shape[0], w.shape[2]) for w in (w1, w2)]
        return (
            dy.new_empty(dy.shape),
            w1.new_empty(w1.shape),
            biases[0],
            w2.new_empty(w2.shape),
            biases[1],
        )


class _ExchangedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ERM: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, name: str
    ) -> Tensor:
        y_ERM, *kept = _operator(x_ERM, w1, b1, w2, b2, name)
        ctx.save_for_backward(*kept, w1, w2)
        ctx.name = name
        return y_ERM

    @staticmethod
    def backward(ctx: Any, dy_ERM: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward_operator(dy_ERM, *ctx.saved_tensors, ctx.name), None)


def exchanged_experts(
    x_ERM: Tensor, w1: Tensor, b1_DH: Tensor, w2: Tensor, b2_DM: Tensor, name: str
) -> Tensor:
    """gelu(x W1 + b1) W2 + b2 of every expert, each on its process; [E, R, M] to [E, R, M].

    Args:
        x_ERM: rows of this process for each expert of the group, equally many on every process.
        w1, b1_DH, w2, b2_DM: of this process's experts, [D, M, H] and [D, H, M].
        name: of the expert parallel group (gshard/all_to_all.py, ``group_name``).
    """
    return _ExchangedExperts.apply(x_ERM, w1, b1_DH, w2, b2_DM, name)
