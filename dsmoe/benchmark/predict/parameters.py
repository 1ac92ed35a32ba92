"""The parameters of one process: those that all processes share, and its experts'."""

from __future__ import annotations

from dataclasses import dataclass

from dsmoe.benchmark.cases.case import Case


@dataclass(frozen=True)
class Held:
    """Elements of one process: ``dense`` ones, which every process has, and ``experts``' ones.

    ``tensors``: how many parameters they are.
    """

    dense: int
    experts: int
    tensors: int

    @property
    def whole(self) -> int:
        """All of them."""
        return self.dense + self.experts


def held(case: Case) -> Held:
    """What a process holds, from the model's closed formula of its parameters."""
    model, size = case.model, case.parallel.expert_parallel_size
    h, f = model.hidden_size, model.ffn_multiplier
    mixtures = model.num_layers // 2
    one = 2 * f * h * h + f * h + h  # two matrices and two biases
    experts = mixtures * model.num_experts * one
    dense = model.parameter_count - experts
    local = model.num_experts // size
    stacked = 4 if case.moe_implementation != "deepspeed" else 4 * local
    tensors = 4 + model.num_layers * 8 + mixtures * (4 + 1 + stacked)
    return Held(dense, experts // size, tensors)
