"""A compiled model asks the policy, and each answer leads to the operator that it names.

The stand-in for a GPU's policy answers as on Hopper while torch.compile traces; when they run, the
operators find no library for CPU tensors and compute their formulas.
"""

from __future__ import annotations

import os
import types
from typing import Any

import pytest
import torch
from deepspeed.moe.kernels import policy
from deepspeed.moe.lm import MoELM, MoELMConfig, compile_problem
from deepspeed.moe.lm.compiled import keep_triton_cache

pytestmark = pytest.mark.skipif(compile_problem() is not None, reason=str(compile_problem()))
OPERATORS = {"product", "product_gelu", "causal_attention", "output_losses"}
OPERATORS |= {f"packed_{name}" for name in ("up", "down", "product", "weight_gradient")}


def library(name: str) -> Any:
    """A module, as the real libraries are, that takes tensors only while they are traced."""
    module = types.ModuleType(name)
    module.supports_heads = lambda qkv: torch.compiler.is_compiling()  # type: ignore[attr-defined]
    module.supports_operands = lambda *tensors: False  # type: ignore[attr-defined]
    return module


class LikeHopper(policy.KernelPolicy):
    def takes(self, x: torch.Tensor) -> bool:
        return torch.compiler.is_compiling()


def step(model: MoELM) -> tuple[torch.Tensor, list[torch.Tensor]]:
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(3))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def operators_of(graphs: list[torch.fx.GraphModule]) -> set[str]:
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    return {text.split(".")[1] for text in targets if text.startswith("dsmoe.")}


@pytest.mark.long
def test_a_compiled_model_has_the_operators_and_the_gradients(one_process: None) -> None:
    """With rematerialisation, so that the operators are traced inside of a checkpoint too."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    sizes = {"num_heads": 2, "vocab_size": 32, "sequence_length": 8, "ffn_multiplier": 2}
    model = MoELM(MoELMConfig(16, 2, 4, remat=True, second_expert_policy="all", **sizes), seed=0)
    model.double()
    expected_loss, expected = step(model)
    torch.compiler.reset()
    model.compile_training(backend=aot_autograd(fw_compiler=keep))
    libraries = policy.Libraries(library("hopper"), library("attention"), library("cublaslt"))
    with policy.using(LikeHopper(libraries)):
        loss, gradients = step(model)
    assert operators_of(graphs) >= OPERATORS
    # the loss's gradient by the last layer's output is rounded to fp32
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-7)


def test_triton_writes_where_inductor_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/inductor")
    keep_triton_cache(3)
    assert os.environ["TRITON_CACHE_DIR"] == "/inductor/triton/3"
    keep_triton_cache(4)
    assert os.environ["TRITON_CACHE_DIR"] == "/inductor/triton/3"
