"""The training pass of the model through torch.compile, region by region.

A region is a layer, or the output layer with the loss. Layers of one kind share a compiled graph,
so that compile time does not grow with their number; a graph over several layers could fuse just
one more addition a layer. Every region is one graph without a break, or an error; nothing falls
back to eager execution. Evaluation and generation are not compiled.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable

import torch
from deepspeed.moe.kernels.policy import kernels
from deepspeed.utils.neutral import has_triton
from torch import Tensor, nn

# Before 2.5 torch.compile compiles again for every instance of a module that is an argument.
FIRST_RELEASE = (2, 5)


def compile_problem() -> str | None:
    """Why torch.compile cannot be used for this model here; None where it can."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < FIRST_RELEASE:
        wanted = ".".join(map(str, FIRST_RELEASE))
        return (
            f"torch {torch.__version__} compiles every layer again instead of sharing one graph;"
            f" expected torch {wanted} or later"
        )
    if torch.cuda.is_available() and not has_triton():
        return "torch.compile needs Triton on a GPU, and Triton cannot be imported; install triton"
    return None


class CompiledRegions:
    """Compiled versions of a layer's call and of the loss; made by :func:`compile_regions`.

    Attributes:
        layer: ``layer(block, x_BSM)`` is ``block(x_BSM)``.
        loss: ``loss(model, *arguments)`` is ``model.cross_entropy(*arguments)``.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.layer: Callable[..., Any] = torch.compile(_call_layer, **options)
        self.loss: Callable[..., Any] = torch.compile(_call_loss, **options)


def compile_regions(**options: Any) -> CompiledRegions:
    """Regions that compile at their first call; ``options`` are torch.compile's.

    Raises:
        RuntimeError: where :func:`compile_problem` has a reason.
    """
    problem = compile_problem()
    if problem:
        raise RuntimeError(problem)
    if torch.cuda.is_available():
        keep_triton_cache(torch.cuda.current_device())
    kernels().libraries()  # the search for them is not for the compiler to trace
    return CompiledRegions({"fullgraph": True, "dynamic": False, **options})


def keep_triton_cache(device: int) -> None:
    """Let every start keep Triton's kernels where Inductor would; a variable that is set stays.

    Inductor sets TRITON_CACHE_DIR at the first kernel that this process compiles itself, which it
    does only until its workers have started. A start that finds Inductor's kernels on disk does
    not get there: it looks for the kernels of cross_entropy.py and AdaFactor elsewhere, and
    compiled them again (10 s on an H200).
    """
    with contextlib.suppress(ImportError):  # of a private name: only time depends on it
        from torch._inductor.runtime.runtime_utils import triton_cache_dir

        os.environ.setdefault("TRITON_CACHE_DIR", triton_cache_dir(device))


def _call_layer(block: nn.Module, x_BSM: Tensor) -> Any:
    return block(x_BSM)


def _call_loss(model: Any, *arguments: Any) -> Any:
    # not the bound method: that is a new object in every call, for which torch 2.8 recompiles
    return model.cross_entropy(*arguments)
