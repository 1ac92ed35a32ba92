"""One layer of the model: attention, then a feed-forward layer or experts.

Shape suffixes: B sequences, S positions, M model width, E experts (of all processes).
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from deepspeed.moe.fp8.feed_forward import feed_forward as fp8_feed_forward
from deepspeed.moe.gshard.activation import gelu
from deepspeed.moe.gshard.experts import StackedExperts
from deepspeed.moe.gshard.layer import GShardMoE
from deepspeed.moe.kernels.feed_forward import feed_forward
from deepspeed.moe.kernels.policy import kernels
from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from .attention import CausalSelfAttention
from .config import MoELMConfig
from .remat import recomputed


class MoEBlockOutput(NamedTuple):
    """Result of an MoE layer: its output, and what the loss and the reports need."""

    hidden_BSM: Tensor
    aux_loss: Tensor
    z_loss: Tensor
    expert_load_E: Tensor
    dropped_share: Tensor


class FeedForward(nn.Module):
    """Two linear maps with GELU between: a dense layer, or one expert of DeepSpeed's MoE layer.

    Args:
        hidden_size: model width M.
        ffn_size: width between the two maps.
        init_std, output_std: standard deviations of the two weights at the start.

    Attributes:
        fp8: the products of a training pass are in FP8.
    """

    fp8 = False

    def __init__(self, hidden_size: int, ffn_size: int, init_std: float, output_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.output_std = output_std
        self.fc1 = nn.Linear(hidden_size, ffn_size)
        self.fc2 = nn.Linear(ffn_size, hidden_size)

    def reset_parameters(self) -> None:
        """Draw both weights (normal) and clear the biases."""
        nn.init.normal_(self.fc1.weight, std=self.init_std)
        nn.init.normal_(self.fc2.weight, std=self.output_std)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., M] to [..., M]."""
        if self.fp8 and self.training:
            return self._fused(x, fp8_feed_forward)
        if kernels().fuses_gelu(x):
            return self._fused(x, feed_forward)
        return self.fc2(gelu(self.fc1(x)))

    def _fused(self, x: Tensor, products: Callable[..., Tensor]) -> Tensor:
        y_1RM = products(
            x.reshape(1, -1, x.shape[-1]),
            self.fc1.weight[None],
            self.fc1.bias[None],
            self.fc2.weight[None],
            transposed=True,
        )
        return y_1RM.reshape(x.shape) + self.fc2.bias


def build_moe(config: MoELMConfig, output_std: float) -> nn.Module:
    """The MoE layer of ``config``: DeepSpeed's own, or GShard's by index or by einsum."""
    if config.moe_implementation == "deepspeed":
        expert = FeedForward(config.hidden_size, config.ffn_size, config.init_std, output_std)
        return MoE(
            config.hidden_size,
            expert,
            num_experts=config.num_experts,
            k=config.top_k,
            capacity_factor=config.capacity_factor,
            eval_capacity_factor=config.eval_capacity_factor,
            min_capacity=config.min_capacity,
            noisy_gate_policy=config.noisy_gate_policy,
            drop_tokens=config.drop_tokens,
            # without it bd3ebd's top-1 gate ignores the capacity and fails on an overflow
            use_rts=True,
        )
    return GShardMoE(
        config.hidden_size,
        num_experts=config.num_experts,
        ffn_size=config.ffn_size,
        k=config.top_k,
        capacity_factor=config.capacity_factor,
        eval_capacity_factor=config.eval_capacity_factor,
        min_capacity=config.min_capacity,
        group_size=config.group_size,
        second_expert_policy=config.second_expert_policy,
        renormalize=config.renormalize,
        drop_tokens=config.drop_tokens,
        noisy_gate_policy=config.noisy_gate_policy,
        product_form=config.moe_implementation == "einsum",
        init_std=config.init_std,
        output_std=output_std,
        initialise=False,
    )


class Block(nn.Module):
    """A pre-layer-norm transformer layer; ``has_experts`` says which kind.

    The forward pass takes and returns [B, S, M]; with experts it returns a
    :class:`MoEBlockOutput`. With ``config.remat`` a training pass computes the layer again in the
    backward pass (remat.py). The layer does so itself, so that a compiler sees both passes and
    omits what the gradients do not need, such as the last product.
    """

    def __init__(self, config: MoELMConfig, has_experts: bool, output_std: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.has_experts = has_experts
        self.remat = config.remat
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(
            width, config.num_heads, config.dropout, config.attention
        )
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = (
            build_moe(config, output_std)
            if has_experts
            else FeedForward(width, config.ffn_size, config.init_std, output_std)
        )
        for module in self.ffn.modules():
            if isinstance(module, (FeedForward, StackedExperts)):
                module.fp8 = config.fp8

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, training=self.training) if self.dropout else x

    def forward(self, x_BSM: Tensor) -> Tensor | MoEBlockOutput:
        """See the class."""
        out = recomputed(self._layer, x_BSM) if self.remat and self.training else self._layer(x_BSM)
        return MoEBlockOutput(*out) if self.has_experts else out

    def _layer(self, x_BSM: Tensor) -> Tensor | tuple[Tensor, ...]:
        x_BSM = x_BSM + self._drop(self.attention(self.attention_norm(x_BSM)))
        return self.feed_forward(x_BSM)

    def feed_forward(self, x_BSM: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The layer's second half; with experts also what :class:`MoEBlockOutput` has."""
        h_BSM = self.ffn_norm(x_BSM)
        if not self.has_experts:
            return x_BSM + self._drop(self.ffn(h_BSM))
        y_BSM, *stats = _run_experts(self.ffn, h_BSM)
        return (x_BSM + self._drop(y_BSM), *stats)


def _run_experts(moe: nn.Module, h_BSM: Tensor) -> MoEBlockOutput:
    """Call either kind of MoE layer; both give the same five results."""
    if isinstance(moe, GShardMoE):
        y_BSM, stats = moe.deepspeed_moe(h_BSM)
        return MoEBlockOutput(
            y_BSM, stats.aux_loss, stats.z_loss, stats.expert_load_E, stats.dropped_share
        )
    y_BSM, aux_loss, load_E = moe(h_BSM)
    # DeepSpeed's layer does not return how many tokens it dropped: NaN marks it as unknown
    unknown = torch.full((), float("nan"), device=h_BSM.device)
    return MoEBlockOutput(y_BSM, aux_loss, torch.zeros_like(aux_loss), load_E, unknown)
