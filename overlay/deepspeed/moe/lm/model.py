"""A decoder-only transformer whose every second feed-forward layer is a mixture of experts.

The family of GShard (arXiv 2006.16668) and GSPMD (arXiv 2105.04663), at the sizes of the Alpa
artifact: pre-layer-norm, learned positions, output layer tied to the embedding.

Shape suffixes: B sequences, S positions, M model width, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from deepspeed.moe.expert_init import derive_seed, draw_seed
from deepspeed.moe.kernels.output_loss import output_loss
from deepspeed.moe.kernels.policy import kernels
from torch import Tensor, nn

from .block import Block, MoEBlockOutput
from .compiled import CompiledRegions, compile_regions
from .config import MoELMConfig
from .exported import load_exported
from .weights import initialise

# Rows of logits that an evaluation has at once: 0.5 GiB in fp32 at a vocabulary of 32,000.
EVALUATION_ROWS = 4096
_IGNORED = -100  # torch's ignore_index


class StepStats(NamedTuple):
    """The parts of the last loss, detached, on the device: reading a value waits for the device."""

    cross_entropy: Tensor
    """Mean over the tokens that count, in nats."""
    aux_loss: Tensor
    """Balance losses summed over the MoE layers, without the coefficient; uniform routing is L."""
    z_loss: Tensor
    """Router z-losses summed over the MoE layers, without the coefficient."""
    expert_load: Tensor
    """[L, E]: tokens of this process whose first choice each expert was."""
    dropped_share: Tensor
    """[L]: share of the choices tried that found their expert full; NaN where unknown."""


class MoELM(nn.Module):
    """The language model of a :class:`MoELMConfig`.

    DeepSpeed's groups (``deepspeed.utils.groups.initialize``) must exist first if the model has
    experts; each process then holds its share of them. The initial weights depend on the seed
    only, not on the expert parallel size or ``moe_implementation``.

    Args:
        config: sizes and choices.
        seed: of the initial weights; by default drawn from the default generator, so that
            processes agree that called ``torch.manual_seed`` with one seed.
    """

    def __init__(self, config: MoELMConfig, seed: int | None = None) -> None:
        super().__init__()
        seed = draw_seed() if seed is None else seed
        self.config = config
        self.last_stats: StepStats | None = None
        self._regions: CompiledRegions | None = None
        output_std = config.init_std / math.sqrt(2 * config.num_layers)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.sequence_length, config.hidden_size)
        moe_layers = set(config.moe_layers)
        self.layers = nn.ModuleList(
            Block(config, i in moe_layers, output_std) for i in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size)
        initialise(self, derive_seed(seed, "model"), config.init_std, output_std)

    @classmethod
    def from_exported(cls, folder: Any, device: Any = "cpu") -> MoELM:
        """The model in ``folder``, which ``dsmoe export`` wrote, on ``device``, for evaluation.

        It needs no DeepSpeed engine. Raises ValueError for a folder of another kind, ImportError
        where safetensors is missing.
        """
        model: MoELM = load_exported(cls, folder, device)
        return model

    def compile_training(self, **options: Any) -> None:
        """From now on run training passes with labels through torch.compile (compiled.py).

        Args:
            options: torch.compile's, e.g. ``backend``.

        Raises:
            RuntimeError: where this torch cannot (``compiled.compile_problem`` has the reason).
        """
        self._regions = compile_regions(**options)

    def forward(
        self, tokens: Tensor, labels: Tensor | None = None, loss_mask: Tensor | None = None
    ) -> Tensor:
        """Logits, or with ``labels`` the training loss.

        Args:
            tokens: [B, S] token numbers, S at most ``config.sequence_length``.
            labels: [B, S] the token to predict at each position; -100 leaves a position out, as in
                torch's cross_entropy.
            loss_mask: [B, S] weights of the positions in the cross-entropy, 0 to leave one out.
                It does not change the routing: a masked token still takes a slot of an expert.

        Returns:
            [B, S, V] logits without labels; with labels the scalar cross-entropy (in fp32, mean
            over the weights) + aux_loss_coefficient * aux + z_loss_coefficient * z, the last two
            summed over the MoE layers. The parts are in ``last_stats``.

        Raises:
            ValueError: for sequences longer than the learned positions.
        """
        length = tokens.shape[1]
        if length > self.config.sequence_length:
            raise ValueError(
                f"tokens have {length} positions; expected at most"
                f" sequence_length = {self.config.sequence_length}: shorten them"
            )
        x_BSM = self.embedding(tokens) + self.positions.weight[:length]
        if self.config.dropout:
            x_BSM = F.dropout(x_BSM, self.config.dropout, training=self.training)
        regions = self._regions if self.training and labels is not None else None
        outputs: list[MoEBlockOutput] = []
        for layer in self.layers:
            out = regions.layer(layer, x_BSM) if regions else layer(x_BSM)
            if isinstance(out, MoEBlockOutput):
                outputs.append(out)
                x_BSM = out.hidden_BSM
            else:
                x_BSM = out
        if labels is None:
            return self._logits(x_BSM)
        arguments = (x_BSM, labels, loss_mask)
        cross_entropy = (
            regions.loss(self, *arguments) if regions else self.cross_entropy(*arguments)
        )
        return self._loss(cross_entropy, outputs)

    def _logits(self, x_BSM: Tensor) -> Tensor:
        """[B, S, V]."""
        return F.linear(self.final_norm(x_BSM), self.embedding.weight)

    def cross_entropy(self, x_BSM: Tensor, labels_BS: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Weighted mean cross-entropy (see :meth:`forward`) of the last layer's output."""
        if not torch.is_grad_enabled():
            return self._cross_entropy_in_pieces(x_BSM, labels_BS, mask_BS)
        if not kernels().fuses_loss(x_BSM):
            return _cross_entropy(self._logits(x_BSM), labels_BS, mask_BS)
        x_NM = self.final_norm(x_BSM).reshape(-1, x_BSM.shape[-1])
        shares_N = _shares(labels_BS, mask_BS, torch.float32)
        return output_loss(x_NM, self.embedding.weight, labels_BS.reshape(-1), shares_N)

    def _cross_entropy_in_pieces(
        self, x_BSM: Tensor, labels_BS: Tensor, mask_BS: Tensor | None
    ) -> Tensor:
        """The same without a gradient, whose logits need never be there together."""
        exact = torch.promote_types(x_BSM.dtype, torch.float32)
        shares_N = _shares(labels_BS, mask_BS, exact)
        x_NM, labels_N = x_BSM.reshape(-1, x_BSM.shape[-1]), labels_BS.reshape(-1)
        total = torch.zeros((), dtype=exact, device=x_BSM.device)
        for at in range(0, x_NM.shape[0], EVALUATION_ROWS):
            piece = slice(at, at + EVALUATION_ROWS)
            logits = self._logits(x_NM[piece]).to(exact)
            losses = F.cross_entropy(logits, labels_N[piece], reduction="none")
            total += (losses * shares_N[piece]).sum()
        return total

    def _loss(self, cross_entropy: Tensor, outputs: list[MoEBlockOutput]) -> Tensor:
        """Add the routers' losses; store the parts in ``last_stats``."""
        loss = cross_entropy
        none = torch.zeros((), dtype=loss.dtype, device=loss.device)
        aux_loss, z_loss = none, none
        load_LE = none.new_zeros((0, self.config.num_experts))
        dropped_L = none.new_zeros((0,))
        if outputs:
            aux_loss = torch.stack([out.aux_loss for out in outputs]).sum()
            z_loss = torch.stack([out.z_loss for out in outputs]).sum()
            load_LE = torch.stack([out.expert_load_E for out in outputs])
            dropped_L = torch.stack([out.dropped_share for out in outputs])
            loss = loss + self.config.aux_loss_coefficient * aux_loss
            if self.config.z_loss_coefficient:
                loss = loss + self.config.z_loss_coefficient * z_loss
        self.last_stats = StepStats(
            cross_entropy.detach(),
            aux_loss.detach(),
            z_loss.detach(),
            load_LE.detach(),
            dropped_L.detach(),
        )
        return loss


def _cross_entropy(logits_BSV: Tensor, labels_BS: Tensor, mask_BS: Tensor | None) -> Tensor:
    """Weighted mean cross-entropy in fp32 (fp64 for fp64 logits); 0 if all weights are 0."""
    exact = torch.promote_types(logits_BSV.dtype, torch.float32)
    flat = logits_BSV.reshape(-1, logits_BSV.shape[-1]).to(exact)
    labels = labels_BS.reshape(-1)
    weights = _weights(labels, mask_BS, exact)
    total = weights.sum()
    total = torch.where(total == 0, torch.ones_like(total), total)
    if mask_BS is None:
        return F.cross_entropy(flat, labels, reduction="sum") / total
    return (F.cross_entropy(flat, labels, reduction="none") * weights).sum() / total


def _weights(labels_N: Tensor, mask_BS: Tensor | None, exact: torch.dtype) -> Tensor:
    """[B S]: the mask, and 0 where the label is -100."""
    counts_N = labels_N != _IGNORED
    if mask_BS is None:
        return counts_N.to(exact)
    return mask_BS.reshape(-1).to(exact) * counts_N


def _shares(labels_BS: Tensor, mask_BS: Tensor | None, exact: torch.dtype) -> Tensor:
    """[B S]: the weight of each position in that mean."""
    weights = _weights(labels_BS.reshape(-1), mask_BS, exact)
    total = weights.sum()
    return weights / torch.where(total == 0, torch.ones_like(total), total)
