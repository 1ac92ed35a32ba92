"""GShard's MoE layer for DeepSpeed: router, routing, dispatch, experts, combine.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from deepspeed.moe.expert_init import draw_seed
from deepspeed.moe.kernels.exchanged_experts import exchanged_experts
from deepspeed.moe.kernels.policy import kernels
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import Tensor, nn

from .all_to_all import group_name, return_from_experts, send_to_experts
from .dispatch import combine, dispatch, slot_indices
from .experts import LocalExperts, StackedExperts
from .product_form import combine_by_product, dispatch_by_product, product_form
from .router import Router
from .routing import RoutingRule, expert_capacity, route


class LayerStats(NamedTuple):
    """What the loss and the reports need of one layer; see :class:`~.routing.Routing`."""

    aux_loss: Tensor
    z_loss: Tensor
    expert_load_E: Tensor
    dropped_share: Tensor


class GShardLayer(nn.Module):
    """Router, dispatch, experts, combine; :class:`GShardMoE` makes it and documents the choices."""

    def __init__(
        self,
        router: Router,
        experts: LocalExperts,
        num_local_experts: int,
        rule: RoutingRule,
        capacity_factors: tuple[float, float],
        min_capacity: int,
        group_size: int | None,
        drop_tokens: bool,
        product_form: bool,
    ) -> None:
        super().__init__()
        self.gate = router  # checkpoints know the router by this name
        self.experts = experts
        self.num_local_experts = num_local_experts
        self.num_experts = router.wg.out_features
        self.group_name = group_name(groups.get_expert_parallel_group())
        self.rule = rule
        # evaluation draws nothing: the best experts, always
        self.eval_rule = RoutingRule(rule.top_k, "all", rule.renormalize)
        self.capacity_factors = capacity_factors
        self.min_capacity = min_capacity
        self.group_size = group_size
        self.drop_tokens = drop_tokens
        self.product_form = product_form

    def forward(
        self, hidden: Tensor, used_token: Tensor | None = None
    ) -> tuple[Tensor, LayerStats]:
        """[..., M] to [..., M], and the layer's figures; ``used_token`` is [...] without M.

        The last group is padded with tokens that are not used.
        """
        width = hidden.shape[-1]
        x_NM = hidden.reshape(-1, width)
        tokens = x_NM.shape[0]
        size = max(min(self.group_size or tokens, tokens), 1)
        padding = -tokens % size if tokens else 1
        used_N = None if used_token is None else used_token.reshape(-1).to(torch.bool)
        if padding:
            if used_N is None:
                used_N = torch.ones(tokens, dtype=torch.bool, device=hidden.device)
            used_N = F.pad(used_N, (0, padding))
            x_NM = F.pad(x_NM, (0, 0, 0, padding))
        logits_GSE = self.gate(x_NM).reshape(-1, size, self.num_experts)
        used_GS = None if used_N is None else used_N.reshape(-1, size)
        rule = self.rule if self.training else self.eval_rule
        routing = route(logits_GSE, self.capacity(tokens, size), rule, used_GS)
        if self.product_form:
            combine_GSEC, mask_GSEC = product_form(routing)
            y_ERM = self._compute_experts(dispatch_by_product(x_NM, mask_GSEC))
            out_NM = combine_by_product(y_ERM, combine_GSEC)
        else:
            packed = self._packs(x_NM)
            slots = slot_indices(routing, packed)
            rows = dispatch(x_NM, slots)
            if packed:
                y_ERM = self.experts.packed(rows, slots.first_row_E1)
            else:
                y_ERM = self._compute_experts(rows)
            weight_KN = routing.weight_KGS.reshape(routing.weight_KGS.shape[0], -1)
            out_NM = combine(y_ERM, weight_KN, slots)
        stats = LayerStats(
            routing.aux_loss, routing.z_loss, routing.expert_load_E, routing.dropped_share
        )
        return out_NM[:tokens].reshape(hidden.shape), stats

    def capacity(self, tokens: int, size: int) -> int:
        """C for ``tokens`` in groups of ``size``; a group that is not full has a full one's."""
        if not self.drop_tokens:
            return size
        factor = self.capacity_factors[0] if self.training else self.capacity_factors[1]
        whole = self.group_size or max(tokens, 1)
        wanted = expert_capacity(
            whole, self.num_experts, self.rule.top_k, factor, self.min_capacity
        )
        return min(wanted, size)

    def _packs(self, x_NM: Tensor) -> bool:
        """Whether the experts compute filled rows alone."""
        stacked = getattr(self.experts, "stacked", None)
        if self.num_local_experts != self.num_experts or not isinstance(stacked, StackedExperts):
            return False
        in_fp8 = stacked.fp8 and self.training
        return not in_fp8 and kernels().packs_rows(x_NM, stacked.w1.shape[-1])

    def _compute_experts(self, x_ERM: Tensor) -> Tensor:
        """Every expert on its rows, wherever it is; [E, R, M] to [E, R, M]."""
        if self.num_local_experts == self.num_experts:
            return self.experts(x_ERM)
        stacked = getattr(self.experts, "stacked", None)
        overlaps = kernels().overlaps_exchange(x_ERM, self.group_name)
        if isinstance(stacked, StackedExperts) and overlaps and not stacked.fp8:
            weights = (stacked.w1, stacked.b1, stacked.w2, stacked.b2)
            return exchanged_experts(x_ERM, *weights, self.group_name)
        x_DRM = send_to_experts(x_ERM, self.num_local_experts, self.group_name)
        return return_from_experts(self.experts(x_DRM), x_ERM.shape[1], self.group_name)


class GShardMoE(MoE):
    """A mixture-of-experts layer by GShard's Algorithm 1, for DeepSpeed's engine and ZeRO.

    A subclass of ``deepspeed.moe.layer.MoE`` with that layer's parameter names
    (``deepspeed_moe.gate.wg.weight``, ``deepspeed_moe.experts.…``) and results; it shares none of
    the construction.

    Args:
        hidden_size: model width M.
        num_experts: E over all processes, a multiple of the expert parallel size.
        ffn_size: hidden width of an expert.
        k, capacity_factor, eval_capacity_factor, min_capacity, noisy_gate_policy: as in ``MoE``;
            "RSample" needs k = 1.
        group_size: tokens of a local group; None: all of this process. If it does not divide the
            tokens, the last group is shorter and keeps the capacity of a whole one.
        second_expert_policy, renormalize: see :class:`~.routing.RoutingRule`. In evaluation the
            second expert is the second best ("all").
        drop_tokens: False gives every expert slots for a whole group, E/k times the usual rows;
            counting the slots that are needed would wait for the device.
        product_form: dispatch and combine by einsum over [G, S, E, C].
        init_std, output_std: standard deviations of the experts' two weights.
        initialise: draw the experts' weights now, from a seed of the default generator.
        experts: a module to use for this process's experts, [D, rows, M] to the same; its
            parameters are marked as experts'. By default :class:`StackedExperts`.

    Every process of the expert parallel group must have the same number of tokens.

    Raises:
        ValueError: for a number of experts that cannot be shared out, or k above it.
        RuntimeError: if DeepSpeed's groups do not exist yet.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        ffn_size: int,
        k: int = 2,
        capacity_factor: float = 1.0,
        eval_capacity_factor: float = 1.0,
        min_capacity: int = 4,
        group_size: int | None = None,
        second_expert_policy: str = "sampling",
        renormalize: str = "kept",
        drop_tokens: bool = True,
        noisy_gate_policy: str | None = None,
        product_form: bool = False,
        init_std: float = 0.02,
        output_std: float = 0.02,
        initialise: bool = True,
        experts: nn.Module | None = None,
    ) -> None:
        nn.Module.__init__(self)
        num_local_experts = _share_out(num_experts, k)
        self.num_experts = num_experts
        own = experts is None
        if own:
            experts = StackedExperts(num_local_experts, hidden_size, ffn_size, init_std, output_std)
            if initialise and not experts.w1.is_meta:
                first = groups.get_expert_parallel_rank() * num_local_experts
                experts.initialise(first, draw_seed())
        for parameter in experts.parameters():
            parameter.allreduce = False
        self.deepspeed_moe = GShardLayer(
            Router(hidden_size, num_experts, jitter=noisy_gate_policy == "Jitter"),
            LocalExperts(experts),
            num_local_experts,
            RoutingRule(k, second_expert_policy, renormalize, noisy_gate_policy == "RSample"),
            (capacity_factor, eval_capacity_factor),
            min_capacity,
            group_size,
            drop_tokens,
            product_form,
        )

    def forward(
        self, hidden_states: Tensor, used_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output [..., M], balance loss, and first choices per expert [E], as ``MoE`` does."""
        output, stats = self.deepspeed_moe(hidden_states, used_token)
        return output, stats.aux_loss, stats.expert_load_E


def _share_out(num_experts: int, k: int) -> int:
    """Experts of this process."""
    if not groups.expert_parallel_is_initialized():
        raise RuntimeError(
            "DeepSpeed's groups are not initialized;"
            " call deepspeed.utils.groups.initialize(ep_size) before making an MoE layer"
        )
    if not 1 <= k <= min(num_experts, 2):
        raise ValueError(f"k is {k}; expected 1 or 2, and at most num_experts = {num_experts}")
    processes = groups.get_expert_parallel_world_size()
    if num_experts % processes:
        raise ValueError(
            f"num_experts is {num_experts};"
            f" expected a multiple of the expert parallel size {processes}"
        )
    return num_experts // processes
