"""The 2-norm of all gradients of a step, as ``engine.get_global_grad_norm`` reports it.

Gradients are those of the loss: the loss scale that multiplied them is divided out, the experts of
all processes count once, and clipping comes after. The norm of a step that was skipped is infinite.
"""

from __future__ import annotations

from typing import Any, Iterable

import torch
import torch.distributed as dist
from deepspeed.moe.expert_norm import sum_of_powers
from deepspeed.moe.utils import is_moe_param
from deepspeed.runtime.fp16.scale_state import loss_scale
from deepspeed.runtime.utils import bwc_tensor_model_parallel_rank, is_model_parallel_parameter
from deepspeed.utils import groups


def before_step(engine: Any) -> Any:
    """What :func:`after_step` needs: the loss scale, or the norm itself where there is no scaler.

    An optimizer that scales computes the norm in its step. In fp32 without ZeRO nobody does, except
    where the engine clips (``engine._global_grad_norm`` is then that of this step).
    """
    if hasattr(engine.optimizer, "_global_grad_norm"):
        return loss_scale(engine.optimizer)
    clipped = engine.gradient_clipping() > 0.0 or engine.amp_enabled()
    return engine._global_grad_norm if clipped else of_module(engine)


def after_step(engine: Any, before: Any) -> Any:
    """The norm of the step that ``engine.optimizer`` has just taken, or skipped."""
    if not hasattr(engine.optimizer, "_global_grad_norm"):
        return before
    norm = engine.optimizer._global_grad_norm
    finite = norm >= 0 and not getattr(engine.optimizer, "overflow", False)  # DeepSpeed's inf is -1
    return norm / before if finite else float("inf")


def number(norm: Any) -> float | None:
    """``norm`` as a number; waits for the device where it is still a tensor."""
    return norm.item() if torch.is_tensor(norm) else norm


def of_module(engine: Any) -> torch.Tensor:
    """Norm of the module's gradients in fp32 as a tensor [1] on their device; nothing waits.

    Every process must call it: experts are added up over the expert parallel group, model parallel
    parameters over the model parallel group.
    """
    params = [p for p in engine.module.parameters() if p.grad is not None]
    experts = [p for p in params if is_moe_param(p)]
    mpu = engine.mpu
    first = bwc_tensor_model_parallel_rank(mpu) == 0
    here = [p for p in params if first or is_model_parallel_parameter(p)]
    once = [p for p in here if not getattr(p, "ds_pipe_replicated", False)]
    total = _squares(p for p in once if not is_moe_param(p)).to(engine.device)
    if mpu is not None:
        dist.all_reduce(total, group=mpu.get_model_parallel_group())
    if engine.has_moe_layers:
        everywhere = _squares(experts).to(engine.device)
        if groups.get_expert_parallel_world_size() > 1:
            dist.all_reduce(everywhere, group=groups.get_expert_parallel_group())
        total = total + everywhere
    return total.sqrt()


def _squares(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of the squares of all gradients, [1] in fp64."""
    norms = [torch.zeros(())]
    for parameter in parameters:
        grad = parameter.grad.detach()
        grad = grad.coalesce().values() if grad.is_sparse else grad
        norms.append(torch.linalg.vector_norm(grad.float()))
    norms[0] = norms[0].to(norms[-1].device)
    return torch.stack(norms).double().square().sum().reshape(1)


def with_other_experts(norm: float, bit16_groups: Any, flat_groups: Any) -> float:
    """Complete ``norm``, of all this process's flat fp32 gradients, to that of the whole gradient.

    For DeepSpeed's fused optimizer of 16 bit, which averaged the processes' norms although each
    holds other experts. ``bit16_groups``: the parameters; ``flat_groups``: for each group a tensor
    whose ``.grad`` holds their gradients, in order. -1, a norm that is not finite, stays.
    """
    experts = []
    for params, flat in zip(bit16_groups, flat_groups):
        for param, grad in zip(params, flat.grad.split([p.numel() for p in params])):
            if is_moe_param(param):
                experts.append(_Holder(grad))
    if not experts or groups.get_expert_parallel_world_size() == 1:
        return norm
    here = sum_of_powers(experts, 2.0)
    everywhere = here.clone()
    dist.all_reduce(everywhere, group=groups.get_expert_parallel_group())
    if norm < 0:
        return norm
    return max(norm**2 + (everywhere - here).item(), 0.0) ** 0.5


class _Holder:
    """A gradient in the place of a parameter."""

    def __init__(self, grad: torch.Tensor) -> None:
        self.grad, self.device = grad, grad.device
