"""What a run measures of its model beside the time: load, held-out loss, memory, parameters.

Every function is called by all processes together.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.lm import MoELM
from deepspeed.moe.pipeline import StageModel
from deepspeed.utils import groups  # type: ignore[attr-defined]

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.data.batches import artifact_ids, as_torch, evaluation_batches
from dsmoe.benchmark.data.corpus import Corpus

EVALUATION_BATCHES = 8


def expert_load(model: MoELM, device: torch.device) -> list[list[float]]:
    """Each MoE layer's share of first choices by expert, over all processes' last micro-batch."""
    assert model.last_stats is not None  # a micro-batch went before
    # DeepSpeed's own layer counts on the CPU, where NCCL cannot add
    load = of_all_layers(model, model.last_stats.expert_load.to(device).double())
    dist.all_reduce(load)
    return (load / load.sum(dim=-1, keepdim=True).clamp(min=1)).tolist()


def dropped_shares(model: MoELM, device: torch.device, processes: int) -> list[float]:
    """Each MoE layer's share of the choices that found their expert full, the mean over the last
    micro-batch of ``processes``; NaN where the layer does not say."""
    assert model.last_stats is not None
    dropped = of_all_layers(model, model.last_stats.dropped_share.to(device).double())
    dist.all_reduce(dropped)
    return (dropped / processes).tolist()


@torch.no_grad()
def held_out_loss(engine: Any, case: Case, text: Corpus, device: torch.device) -> float | None:
    """Mean cross-entropy on text that was not trained on; None where there is too little."""
    if text.held_out is None:
        return None
    engine.eval()
    losses = []
    for batch in evaluation_batches(
        text.held_out,
        case.model.sequence_length,
        case.micro_batch_size,
        EVALUATION_BATCHES,
        vocab_size=case.model.vocab_size,
    ):
        if case.artifact_ids:
            batch = artifact_ids(batch, text.info.largest_id, case.model.vocab_size)
        tokens, labels = as_torch(batch, str(device))
        if isinstance(engine.module, StageModel):
            losses.append(float(engine.evaluate(tokens, labels)))
            continue
        engine(tokens, labels)
        losses.append(float(engine.module.last_stats.cross_entropy))
    engine.train()
    return sum(losses) / len(losses) if losses else None


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak, the largest of all processes: the allocator's, or resident on a CPU."""
    if device.type == "cuda":
        here = torch.cuda.max_memory_allocated(device)
    else:
        kilobyte = 1 if sys.platform == "darwin" else 1024
        here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
    largest = torch.tensor([here], dtype=torch.int64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest.item())


def of_all_layers(model: MoELM, of_own_L: torch.Tensor) -> torch.Tensor:
    """A figure by MoE layer [L, ...] with zeros for the layers of other stages of a pipeline."""
    if not isinstance(model, StageModel):
        return of_own_L
    whole = of_own_L.new_zeros((len(model.config.moe_layers), *of_own_L.shape[1:]))
    whole[model.moe_layers] = of_own_L
    return whole


def parameter_count(model: MoELM) -> int:
    """Parameters of the whole model, each expert and a tied embedding counted once."""
    local = sum(p.numel() for p in model.parameters() if not getattr(p, "allreduce", True))
    dense = sum(p.numel() for p in model.parameters() if getattr(p, "allreduce", True))
    ranks: int = groups.get_expert_parallel_world_size()
    count = dense + local * ranks
    if not isinstance(model, StageModel):
        return count
    if model.has_tied_copy and not model.is_first:
        count -= model.embedding.weight.numel()
    device = next(model.parameters()).device
    whole = torch.tensor([count], dtype=torch.int64, device=device)
    # the group of a column: one process of each stage
    dist.all_reduce(whole, group=groups.get_model_parallel_group())
    return int(whole.item())
