"""What each stage of a pipeline needs: a step of every stage on meta tensors.

Follows deepspeed/moe/pipeline (overlay/): a stage holds the activations of several micro-batches
by its schedule, gradients are summed in fp32, and masters and the optimizer's state are partitioned
at ZeRO-1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.plan.ledger import Ledger
from dsmoe.benchmark.plan.simulation import (
    DTYPES,
    dispatch_bytes,
    masks_of,
    optimizer_on,
    policy_of,
)
from dsmoe.benchmark.plan.zero import BUCKETS, GRADIENTS, PARAMETERS, Group

MESSAGES = "messages of stages"
HIDDEN, BACK, TIED_SENT = "hidden states", "their gradients", "tied embedding"


def simulate_stages(case: Case, config: dict[str, Any], device: str) -> dict[str, Any]:
    """The plan of the stage that needs most memory, as ``simulation.simulate``, and ``stages``: for
    each the ``layers`` from and to (the last one excluded), ``peak`` and ``sent``.

    Needs a process group (fake or real); the groups of the pipeline are made here.
    """
    from deepspeed.moe.pipeline import make_stage_groups

    parallel = case.parallel
    stages = parallel.pipeline_parallel_size
    groups = make_stage_groups(stages, parallel.expert_parallel_size)
    plans = [_stage(case, config, device, groups, stage) for stage in range(stages)]
    keys = ("layers", "peak", "sent")
    by_stage = [{key: plan[key] for key in keys} for plan in plans]
    largest = max(plans, key=lambda plan: plan["peak"])
    return {**{k: v for k, v in largest.items() if k != "layers"}, "stages": by_stage}


def _stage(
    case: Case, config: dict[str, Any], device: str, groups: Any, stage: int
) -> dict[str, Any]:
    from deepspeed.moe.kernels.policy import using
    from deepspeed.moe.pipeline import StageModel, one_forward_one_backward

    from dsmoe.benchmark.train.start import model_config

    stages, count = groups.stages, case.micro_batches
    ledger = Ledger()
    with using(policy_of(case, device)), masks_of(case, device), ledger:
        with ledger.kind(PARAMETERS), torch.device("meta"):
            model = StageModel(model_config(case), stages, stage).to(DTYPES[case.weight_precision])
        buffers = _Buffers(model, case, config, groups, ledger)
        shape = (case.micro_batch_size, case.model.sequence_length)
        made = min(count, 2 * stages + 2)  # the activations held do not grow with more
        for _ in range(2):
            ledger.restart()
            held: dict[int, Any] = {}
            schedule = case.parallel.pipeline_schedule
            for kind, number in one_forward_one_backward(stages, stage, made, schedule):
                if kind == "forward":
                    held[number] = _forward(model, shape, buffers.dtype)
                else:
                    buffers.backward(*held.pop(number))
            buffers.step()
    ledger.sent.pop("all-reduce", None)
    hidden = case.global_batch_size // case.parallel.data_parallel_size
    hidden *= shape[1] * case.model.hidden_size * buffers.size
    sent = {kind: size * count // made for kind, size in ledger.sent.items()}
    sent.update(buffers.reductions())
    sent.update({HIDDEN: hidden} if stage < stages - 1 else {})
    sent.update({BACK: hidden} if stage else {})
    if model.has_tied_copy:
        sent[TIED_SENT] = 4 * model.embedding.weight.numel() // groups.width
    return {
        "layers": list(model.placed),
        "peak": ledger.peak,
        "kinds": ledger.peak_kinds,
        "most": ledger.most,
        "sent": sent,
        "local_parameters": sum(p.numel() for p in model.parameters()),
        "dispatch": dispatch_bytes(model, shape[0] * shape[1], case.model.hidden_size),
    }


def _forward(model: Any, shape: tuple[int, int], dtype: torch.dtype) -> tuple[list[Any], Any]:
    """What a backward pass begins from: the losses of a forward pass, and its hidden states."""
    tokens = torch.empty(shape, dtype=torch.int64, device="meta")
    inputs = tokens
    if not model.is_first:
        width = model.config.hidden_size
        inputs = torch.empty(*shape, width, dtype=dtype, device="meta", requires_grad=True)
    hidden, loss = model(inputs, tokens if model.is_last else None)
    return ([loss] if loss.requires_grad else []), hidden


class _Buffers:
    """What a stage's engine keeps: flat weights, masters, sums, the optimizer, posted receives."""

    def __init__(
        self, model: Any, case: Case, config: dict[str, Any], groups: Any, ledger: Ledger
    ) -> None:
        from deepspeed.moe.pipeline import stage_param_groups

        self.ledger, self.width, self.model = ledger, groups.width, model
        self.partitioned = case.parallel.zero_stage == 1
        self.dtype = DTYPES[case.weight_precision]
        # 16-bit messages inside a stage where they are asked for
        self.size = torch.empty((), dtype=self.dtype).element_size()
        self.element = self.size if case.reduce == "step" else 4
        alone = dist.new_group([dist.get_rank()])
        self.cut, self.copies = [], []
        for group in stage_param_groups(model):
            copies = groups.expert_data if group.get("moe") else groups.data
            self.cut.append(Group(group["params"], copies if self.partitioned else alone, ledger))
            self.copies.append(dist.get_world_size(copies))
        self.optimizer = optimizer_on([g.master for g in self.cut], config, ledger, self.cut)
        with ledger.kind(GRADIENTS):
            self.sums = [torch.empty(g.numel, device="meta") for g in self.cut]
        ends = (not model.is_first) + (not model.is_last)
        form = (ends, case.micro_batch_size, case.model.sequence_length, case.model.hidden_size)
        with ledger.kind(MESSAGES):  # a receive ahead from each neighbour
            self.posted = torch.empty(form, dtype=self.dtype, device="meta")
        for made in self.cut:
            for param in made.params:
                param.register_post_accumulate_grad_hook(lambda p: ledger.move(p.grad, GRADIENTS))

    def backward(self, losses: list[Any], hidden: Any) -> None:
        """From the losses, and from the hidden states with the gradient that has arrived."""
        outputs, gradients = [*losses], [None] * len(losses)
        if hidden is not None:
            outputs.append(hidden)
            gradients.append(hidden.new_empty(hidden.shape))
        torch.autograd.backward(outputs, gradients)
        for param in self.model.parameters():
            param.grad = None

    def step(self) -> None:
        if self.model.has_tied_copy and not self.partitioned and self.width > 1:
            with self.ledger.kind(BUCKETS):  # the parts of the tied gradient, and this one's
                size = self.model.embedding.weight.numel()
                parts = [torch.empty(size, device="meta"), torch.empty(size // self.width)]
                del parts
        for group, total in zip(self.cut, self.sums):
            group.master.grad = total[group.rank * group.part :][: group.part]
        self.optimizer.step()
        for group in self.cut:
            group.master.grad = None

    def reductions(self) -> dict[str, int]:
        """Bytes of the collectives of gradients and weights inside the stage."""
        shared = [group for group, copies in zip(self.cut, self.copies) if copies > 1]
        whole = sum(group.numel for group in shared)
        if not whole:
            return {}
        if not self.partitioned:
            return {"all-reduce": 4 * whole}
        part = sum(group.part * group.flat.element_size() for group in shared)
        return {"reduce": self.element * whole, "all-gather": part}
