"""What the engine says of a step that it skips, and when it gives up skipping.

A step whose gradients are not finite is skipped. One line on the first process says which step, at
which loss scale, and what happens to the scale. Where no smaller scale can help, because it is at
its minimum or static, or because the loss itself is not finite, the run ends after ``LIMIT`` such
steps in a row, with the reason.
"""

from __future__ import annotations

import collections
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.scale_state import loss_scale
from deepspeed.utils import logger

#: Steps in a row that may be skipped although no smaller loss scale can help.
LIMIT = 10


class SkippedSteps:
    """Counts the steps of one engine that are skipped in vain. The counter is no part of a
    checkpoint: a resumed run has another ``LIMIT`` steps."""

    def __init__(self) -> None:
        self.in_vain = 0
        self.scale = 1.0
        self.losses: collections.deque[torch.Tensor] = collections.deque(maxlen=64)

    def watch(self, loss: Any) -> None:
        """Keep a micro-batch's loss, before it is scaled, until the step; nothing waits for it."""
        if torch.is_tensor(loss):
            self.losses.append(loss.detach())

    def before_step(self, engine: Any) -> None:
        """Called before the optimizer's step, which may change the scale."""
        self.scale = loss_scale(engine.optimizer)

    def after_step(self, engine: Any) -> None:
        """Called by every process once the engine has counted the step.

        Raises RuntimeError, on every process, when skipping has become endless.
        """
        losses = list(self.losses)
        self.losses.clear()
        optimizer = engine.optimizer
        if not getattr(optimizer, "overflow", False):
            self.in_vain = 0
            return
        bad_loss = _on_any_process(engine, any(not bool(x.isfinite().all()) for x in losses))
        now = loss_scale(optimizer)
        kept = now >= self.scale
        hopeless = bad_loss or (kept and _cannot_fall(optimizer, now))
        self.in_vain = self.in_vain + 1 if hopeless else 0
        step = engine.global_steps
        found = "the loss is" if bad_loss else f"gradients at loss scale {_text(self.scale)} are"
        if dist.get_rank() == 0:
            then = f"the scale stays {_text(now)}" if kept else f"the scale becomes {_text(now)}"
            logger.warning(f"step {step} is skipped: {found} not finite; {then}")
        if self.in_vain >= LIMIT:
            raise RuntimeError(
                f"steps {step - LIMIT + 1} to {step} were skipped, and no smaller loss scale can "
                f"help: {_reason(engine, bad_loss, now)}{_bad_weight(engine)}"
            )


def _on_any_process(engine: Any, flag: bool) -> bool:
    found = torch.tensor([float(flag)], device=engine.device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def _text(scale: float) -> str:
    return str(int(scale)) if scale.is_integer() else f"{scale:g}"


def _minimum(optimizer: Any) -> float:
    scaler = getattr(optimizer, "loss_scaler", optimizer)
    return getattr(scaler, "min_scale", getattr(scaler, "min_loss_scale", 1.0))


def _cannot_fall(optimizer: Any, scale: float) -> bool:
    return not optimizer.dynamic_loss_scale or scale <= _minimum(optimizer)


def _reason(engine: Any, bad_loss: bool, scale: float) -> str:
    if bad_loss:
        return (
            "the loss itself is not finite: look at the data and the forward pass, lower the "
            "learning rate, or use bf16"
        )
    if not engine.fp16_enabled():
        return "gradients are not scaled in this precision: lower the learning rate"
    if engine.optimizer.dynamic_loss_scale:
        return (
            f"it is at its minimum, {_text(scale)}: lower fp16.min_loss_scale or the learning rate,"
            " or use bf16"
        )
    return (
        f"it is a static one, {_text(scale)}: set fp16.loss_scale to 0 for a dynamic one, lower it"
        " or the learning rate, or use bf16"
    )


def _bad_weight(engine: Any) -> str:
    for name, parameter in engine.module.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f" (the weight {name} is not finite: load a checkpoint of before)"
    return ""
