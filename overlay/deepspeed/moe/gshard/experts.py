"""The experts of one process as two batched products.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from deepspeed.moe.expert_init import expert_seed
from deepspeed.moe.fp8.feed_forward import feed_forward as fp8_feed_forward
from deepspeed.moe.kernels.feed_forward import feed_forward
from deepspeed.moe.kernels.policy import kernels
from deepspeed.moe.packed.feed_forward import packed_feed_forward
from torch import Tensor, nn

from .activation import gelu


class StackedExperts(nn.Module):
    """Feed-forward experts, their weights stacked: gelu(x W1 + b1) W2 + b2 for each.

    The parameters carry ``allreduce = False``, by which DeepSpeed knows experts, and
    ``adafactor_batch_dims = 1``: the first dimension counts experts, and AdaFactor factors the
    matrix of each expert by itself.

    Args:
        num_local_experts: D.
        hidden_size, ffn_size: M and H.
        init_std, output_std: standard deviations of W1 and W2 at the start.

    The weights have no values until :meth:`initialise`.

    Attributes:
        fp8: the products of a training pass are in FP8.
    """

    fp8 = False

    def __init__(
        self,
        num_local_experts: int,
        hidden_size: int,
        ffn_size: int,
        init_std: float = 0.02,
        output_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.output_std = output_std
        self.w1 = nn.Parameter(torch.empty(num_local_experts, hidden_size, ffn_size))
        self.b1 = nn.Parameter(torch.empty(num_local_experts, ffn_size))
        self.w2 = nn.Parameter(torch.empty(num_local_experts, ffn_size, hidden_size))
        self.b2 = nn.Parameter(torch.empty(num_local_experts, hidden_size))
        self._mark()

    def _mark(self) -> None:
        for parameter in self.parameters():
            parameter.allreduce = False
            parameter.adafactor_batch_dims = 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Mark the parameters again: copying and unpickling drop their attributes, and DeepSpeed
        averages unmarked experts over all processes."""
        super().__setstate__(state)
        self._mark()

    def initialise(self, first_global_expert: int, layer_seed: int) -> None:
        """Draw the weights (normal; biases 0), each expert from its own stream.

        A weight is drawn in ``nn.Linear``'s layout and transposed, so that an expert of the same
        seed has the same weights here and as a module of linear layers.
        """

        @torch.no_grad()
        def draw(local: int) -> None:
            generator = torch.Generator().manual_seed(
                expert_seed(layer_seed, first_global_expert + local)
            )
            for weight, std in (
                (self.w1[local], self.init_std),
                (self.w2[local], self.output_std),
            ):
                drawn = torch.empty(weight.t().shape, device="cpu")
                weight.copy_(drawn.normal_(std=std, generator=generator).t())

        # torch draws on one thread; with separate streams every expert can have its own thread
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(draw, range(self.w1.shape[0])))
        with torch.no_grad():
            self.b1.zero_()
            self.b2.zero_()

    def forward(self, x_DRM: Tensor) -> Tensor:
        """Each expert on its own rows; [D, rows, M] to [D, rows, M]."""
        if self.fp8 and self.training:
            return fp8_feed_forward(x_DRM, self.w1, self.b1, self.w2) + self.b2[:, None]
        if kernels().fuses_gelu(x_DRM):
            return feed_forward(x_DRM, self.w1, self.b1, self.w2) + self.b2[:, None]
        # biases are added outside of the products: the compiler does not fuse baddbmm with GELU
        hidden_DRH = gelu(torch.bmm(x_DRM, self.w1) + self.b1[:, None])
        return torch.bmm(hidden_DRH, self.w2) + self.b2[:, None]

    def packed(self, x_RM: Tensor, first_row_D1: Tensor) -> Tensor:
        """Each expert on rows ``first_row_D1[d]`` to ``first_row_D1[d + 1]``; [R, M] to [R, M].

        Rows behind the last expert's get no value.
        """
        return packed_feed_forward(x_RM, first_row_D1, self.w1, self.b1, self.w2, self.b2)


class LocalExperts(nn.Module):
    """Holds the experts of this process under the name that checkpoints know."""

    def __init__(self, stacked: nn.Module) -> None:
        super().__init__()
        self.stacked = stacked

    def forward(self, x_DRM: Tensor) -> Tensor:
        """[D, rows, M] to [D, rows, M]."""
        return self.stacked(x_DRM)

    def packed(self, x_RM: Tensor, first_row_D1: Tensor) -> Tensor:
        """:meth:`StackedExperts.packed`."""
        return self.stacked.packed(x_RM, first_row_D1)
