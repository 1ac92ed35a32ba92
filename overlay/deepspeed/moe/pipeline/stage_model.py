"""One stage of the language model: some of its layers, with the names that they have in the whole.

Shape suffixes: B sequences, S positions, M model width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.moe.expert_init import derive_seed, draw_seed
from deepspeed.moe.lm import MoELM, MoELMConfig, param_groups
from deepspeed.moe.lm.block import Block, MoEBlockOutput
from deepspeed.moe.lm.weights import initialise
from torch import Tensor, nn

from .partition import StageLayers, cut

TIED = "tied"
"""The parameter group of the tied embedding, where two stages have a copy."""


class StageModel(MoELM):
    """Stage ``stage`` of ``stages`` of the model of ``config``.

    The first stage has the embedding and the positions; the last one has the final norm and, as the
    output layer, a copy of the embedding. Parameters have the names and the initial weights of
    :class:`MoELM` with the same seed.

    Raises:
        ValueError: for more stages than layers.
    """

    def __init__(
        self, config: MoELMConfig, stages: int, stage: int, seed: int | None = None
    ) -> None:
        nn.Module.__init__(self)
        seed = draw_seed() if seed is None else seed
        self.config = config
        self.last_stats = None
        self._regions = None
        self.stages, self.stage = stages, stage
        self.placed: StageLayers = cut(config, stages)[stage]
        self.is_first, self.is_last = stage == 0, stage == stages - 1
        output_std = config.init_std / math.sqrt(2 * config.num_layers)
        if self.is_first or self.is_last:
            self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        if self.is_first:
            self.positions = nn.Embedding(config.sequence_length, config.hidden_size)
        moe_layers = set(config.moe_layers)
        self.layers = nn.ModuleDict(  # type: ignore[assignment]
            {str(i): Block(config, i in moe_layers, output_std) for i in self.placed.numbers}
        )
        if self.is_last:
            self.final_norm = nn.LayerNorm(config.hidden_size)
        initialise(self, derive_seed(seed, "model"), config.init_std, output_std)

    @property
    def moe_layers(self) -> list[int]:
        """Places of this stage's MoE layers among all of the model."""
        return [n for n, i in enumerate(self.config.moe_layers) if i in self.placed.numbers]

    @property
    def has_tied_copy(self) -> bool:
        """Another stage has a copy of this stage's embedding."""
        return self.stages > 1 and (self.is_first or self.is_last)

    def forward(  # type: ignore[override]
        self, inputs: Tensor, labels: Tensor | None = None, loss_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """The stage's part of a pass.

        Args:
            inputs: [B, S] tokens in the first stage, else [B, S, M] hidden states.
            labels, loss_mask: in the last stage, as :meth:`MoELM.forward` takes them.

        Returns:
            The hidden states [B, S, M] for the next stage (None in the last one), and this stage's
            part of the loss: its routers' losses times their coefficients, and in the last stage
            the cross-entropy too. The sum over all stages is the loss of :class:`MoELM`.
        """
        x_BSM = self._embed(inputs) if self.is_first else inputs
        regions = self._regions if self.training else None
        outputs: list[MoEBlockOutput] = []
        for layer in self.layers.values():  # type: ignore[operator]
            out = regions.layer(layer, x_BSM) if regions else layer(x_BSM)
            if isinstance(out, MoEBlockOutput):
                outputs.append(out)
                out = out.hidden_BSM
            x_BSM = out
        if not self.is_last:
            return x_BSM, self._loss(torch.zeros((), device=x_BSM.device), outputs)
        assert labels is not None, "the last stage needs labels"
        arguments = (x_BSM, labels, loss_mask)
        loss = regions.loss(self, *arguments) if regions else self.cross_entropy(*arguments)
        return None, self._loss(loss, outputs)

    def _embed(self, tokens: Tensor) -> Tensor:
        x_BSM = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        if self.config.dropout:
            x_BSM = F.dropout(x_BSM, self.config.dropout, training=self.training)
        return x_BSM


def stage_param_groups(model: StageModel) -> list[dict[str, Any]]:
    """The groups of :func:`deepspeed.moe.lm.param_groups`, the tied embedding in one of its own."""
    found = param_groups(model)
    if not model.has_tied_copy:
        return found
    tied = model.embedding.weight
    for group in found:
        group["params"] = [p for p in group["params"] if p is not tied]
    return [*(group for group in found if group["params"]), {"params": [tied], "name": TIED}]
