"""Simulates a step of a case on meta tensors.

The model is the real one, built on the meta device by rank 0 of a fake process group of the
case's size (program.py), so that its experts are those of a real process.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.plan.flat import Flat
from dsmoe.benchmark.plan.ledger import Ledger
from dsmoe.benchmark.plan.zero import MASTER, PARAMETERS, STATE, Group, Plain, Zero

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class FlatAttention(torch.autograd.Function):
    """Stands for a fused attention kernel: keeps its inputs, output and one number a row.

    ``keeps``: the output also where the layer is recomputed, as a compiled one does (remat.py).
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keeps: bool
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        ctx.kept = out.detach() if keeps else None
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        ctx.kept = None
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class ByteMasks(TorchFunctionMode):
    """Dropout keeps a mask of one byte an element, as kernels of GPUs do; that of meta tensors is
    as wide as its input."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout:
            return func(*args, **kwargs)

        def masked(x: torch.Tensor, p: float = 0.5, training: bool = True, *_: Any) -> torch.Tensor:
            return torch.native_dropout(x, p, training)[0]

        kwargs.pop("inplace", None)
        return masked(*args, **kwargs)


def planned_kernels(fuses: bool, flat_attention: bool, keeps: bool = False) -> Any:
    """The policy of a planned step: eager operations on meta tensors stand for the real kernels.

    ``fuses``: products with GELU and the loss are the operators of a compiled region;
    ``flat_attention``: attention keeps what a fused kernel keeps, else what its formula keeps;
    ``keeps``: its output also where the layer is recomputed.
    """
    from deepspeed.moe.kernels.policy import KernelPolicy, Libraries
    from deepspeed.moe.lm.attention import math_attention

    class PlannedKernels(KernelPolicy):
        def fuses_gelu(self, x: torch.Tensor) -> bool:
            return fuses

        def fuses_loss(self, x: torch.Tensor) -> bool:
            return fuses

        def attend(
            self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float
        ) -> torch.Tensor:
            if flat_attention:
                out: torch.Tensor = FlatAttention.apply(q, k, v, keeps)  # type: ignore[no-untyped-call]
                return out
            return math_attention(q, k, v, dropout)

    return PlannedKernels(Libraries())


def policy_of(case: Case, device: str) -> Any:
    """The kernels of ``case`` on ``device``, planned."""
    # In a compiled region products with GELU, and the loss, are one operator each.
    fuses = case.compiled and device == "cuda" and case.precision != "fp32"
    # With dropout the CPU has no fused kernel: torch computes the products whole.
    return planned_kernels(fuses, device == "cuda" or not case.dropout, case.compiled)


def masks_of(case: Case, device: str) -> Any:
    """A context: dropout as on ``device``. Not where layers are recomputed, which keep no masks: a
    backward pass, which recomputes them, does not see the context."""
    return ByteMasks() if device == "cuda" and not case.remat else contextlib.nullcontext()


def simulate(case: Case, config: dict[str, Any], device: str) -> dict[str, Any]:
    """Bytes at the peak of a step of ``case`` on one process by kind, and bytes sent by kind.

    ``peak``: all kinds together; ``kinds``: what of each kind lives at that moment; ``most``: the
    most of each kind at any moment; ``dispatch``: one layer's slots for the experts, one way.

    ``config`` is the DeepSpeed configuration. Needs a process group (fake or real) and
    DeepSpeed's groups.
    """
    from deepspeed.moe.kernels.policy import using
    from deepspeed.moe.lm import MoELM, param_groups
    from deepspeed.utils import groups  # type: ignore[attr-defined]

    from dsmoe.benchmark.train.start import model_config

    ledger = Ledger()
    with using(policy_of(case, device)), masks_of(case, device), ledger:
        with ledger.kind(PARAMETERS), torch.device("meta"):
            model = MoELM(model_config(case)).to(DTYPES[case.weight_precision])
        made = param_groups(model)
        zero = _engine(made, case, config, ledger, groups)
        size, length = case.micro_batch_size, case.model.sequence_length
        # Twice, as the optimizer's state may be made by the first step; the second one counts.
        for _ in range(2):
            ledger.restart()
            micro_batches = min(2, case.micro_batches)
            for number in range(micro_batches):
                tokens = torch.empty(2, size, length, dtype=torch.int64, device="meta")
                loss = model(tokens[0], tokens[1])
                zero.backward(loss, number == micro_batches - 1)
                del loss, tokens
            zero.step()
    local = sum(p.numel() for p in model.parameters())
    ledger.sent.pop("all-reduce", None)  # AdaFactor's few sums; the gradients' are added below
    sent = {kind: n * case.micro_batches // micro_batches for kind, n in ledger.sent.items()}
    return {
        "peak": ledger.peak,
        "kinds": ledger.peak_kinds,
        "most": ledger.most,
        "sent": {**sent, **_reductions(zero, case, device)},
        "local_parameters": local,
        "dispatch": dispatch_bytes(model, size * length, case.model.hidden_size),
    }


def _engine(
    made: list[dict[str, Any]],
    case: Case,
    config: dict[str, Any],
    ledger: Ledger,
    groups: Any,
) -> Zero | Flat | Plain:
    stage = case.parallel.zero_stage
    places = [
        groups.get_expert_data_parallel_group()
        if g.get("moe")
        else groups.get_data_parallel_group()
        for g in made
    ]
    cut = [Group(g["params"], place, ledger) for g, place in zip(made, places)]
    if stage:
        optimizer = optimizer_on([group.master for group in cut], config, ledger, cut)
        flat = config["zero_optimization"].get("flat_gradients", False)
        return (Flat if flat else Zero)(cut, optimizer, config, ledger)
    masters: list[torch.Tensor] = []
    params = [param for group in cut for param in group.params]
    for group in cut:
        group.master = group.flat[:0]  # there is no partition
    if case.precision != "fp32":
        with ledger.kind(MASTER):
            masters = [torch.empty(p.shape, dtype=torch.float32, device="meta") for p in params]
        for master in masters:
            master.requires_grad = True
    return Plain(cut, optimizer_on(masters or [*params], config, ledger, []), masters, ledger)


def optimizer_on(
    tensors: list[torch.Tensor], config: dict[str, Any], ledger: Ledger, cut: list[Group]
) -> torch.optim.Optimizer:
    """The real optimizer on ``tensors``, with its state; partitions tagged as ZeRO tags them."""
    from deepspeed.ops.adafactor import Adafactor, tag_partition

    kind, params = config["optimizer"]["type"], dict(config["optimizer"]["params"])
    with ledger.kind(STATE):
        if kind == "Adafactor":
            adafactor = Adafactor(tensors, **params)
            for group in cut:
                ids = list(range(len(group.params)))
                place = group.process_group
                tag_partition(group.master, group.params, group.rank, group.parts, place, ids)
            adafactor.init_state()
            return adafactor
        optimizer: torch.optim.Optimizer
        params.pop("torch_adam", None)
        # A fused kernel has no temporary tensors; the plain one has two, of one tensor's size.
        make: Any = torch.optim.AdamW if kind == "AdamW" else torch.optim.SGD
        if params.pop("fused", False):
            optimizer = make(tensors, foreach=False, **params)
            optimizer.step = lambda closure=None: None  # type: ignore
        else:
            optimizer = make(tensors, foreach=False, **params)
        if kind == "AdamW":
            for tensor in tensors:
                optimizer.state[tensor] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.empty_like(tensor, requires_grad=False),
                    "exp_avg_sq": torch.empty_like(tensor, requires_grad=False),
                }
    return optimizer


def _reductions(zero: Zero | Flat | Plain, case: Case, device: str) -> dict[str, int]:
    """Bytes of the gradients' and parameters' collectives of a step, over more than one process."""
    if isinstance(zero, Flat):
        return zero.reductions(case.micro_batches, device)
    stage = case.parallel.zero_stage
    shared = [group for group in zero.groups if group.parts > 1]
    whole = sum(p.numel() * p.element_size() for group in shared for p in group.params)
    if not stage:
        return {"all-reduce": whole}
    part = sum(group.part * group.flat.element_size() for group in shared)
    return {"reduce": whole * (case.micro_batches if stage == 2 else 1), "all-gather": part}


def dispatch_bytes(model: Any, tokens: int, hidden_size: int) -> int:
    """Bytes of the slots of all experts that one process fills in one layer (in or out)."""
    from deepspeed.moe.gshard.layer import GShardLayer

    for module in model.modules():
        if isinstance(module, GShardLayer):
            size = min(module.group_size or tokens, tokens)
            rows = -(-tokens // size) * module.capacity(tokens, size)
            width: int = hidden_size * next(model.parameters()).element_size()
            return module.num_experts * rows * width
    return 0
