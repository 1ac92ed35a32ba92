"""The loss scale of a resumed run: how it scales is the configuration's, where it was the file's.

A checkpoint holds the scale and its counters, and with them how they were made: static or dynamic,
the window, the minimum. The latter are settings, so those of the run that loads hold. A dynamic
scale goes on where a dynamic one was; every other change (static to dynamic, another static scale,
fp16 after bf16) starts as the configuration says.
"""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.fp16.loss_scaler import DELAYED_SHIFT, DynamicLossScaler


def loss_scale(optimizer: Any) -> float:
    """The present loss scale of any of DeepSpeed's optimizers; 1 for one without."""
    scale = getattr(optimizer, "cur_scale", None)
    return float(getattr(optimizer, "loss_scale", 1.0) if scale is None else scale)


def resume_scaler(scaler: Any, saved: Any) -> None:
    """Continue ``scaler`` (of ZeRO) where ``saved``, the one of the checkpoint, was."""
    if not isinstance(scaler, DynamicLossScaler) or not isinstance(saved, DynamicLossScaler):
        return
    scaler.cur_scale = max(saved.cur_scale, scaler.min_scale)
    scaler.cur_iter = saved.cur_iter
    scaler.last_overflow_iter = saved.last_overflow_iter
    if scaler.delayed_shift == saved.delayed_shift:
        scaler.cur_hysteresis = saved.cur_hysteresis


def resume_scale(optimizer: Any, state: dict[str, Any]) -> None:
    """Continue the scale of ``optimizer`` (without ZeRO) where its ``state_dict`` ``state`` was."""
    optimizer.cur_iter = state["cur_iter"]
    if optimizer.dynamic_loss_scale and state["dynamic_loss_scale"]:
        optimizer.cur_scale = max(state["cur_scale"], optimizer.min_loss_scale)
        optimizer.last_overflow_iter = state["last_overflow_iter"]
        if state.get("hysteresis") == getattr(optimizer, "hysteresis", 1):
            optimizer.hysteresis_left = state["hysteresis_left"]
    elif optimizer.dynamic_loss_scale:
        optimizer.last_overflow_iter = optimizer.cur_iter - 1  # a window begins here


def start_hysteresis(optimizer: Any, settings: dict[str, Any]) -> None:
    """Let ``optimizer`` (without ZeRO) bear as many overflows in a row as ``settings`` say.

    As ZeRO's scaler does: the scale falls at the last of them, and at each one after it until it
    has grown again.
    """
    optimizer.hysteresis = optimizer.hysteresis_left = settings[DELAYED_SHIFT]


def hysteresis_state(optimizer: Any) -> dict[str, Any]:
    """What ``state_dict`` holds of it."""
    names = ("hysteresis", "hysteresis_left")
    return {name: getattr(optimizer, name) for name in names if hasattr(optimizer, name)}


def lowered(optimizer: Any) -> float:
    """The scale after an overflow."""
    if getattr(optimizer, "hysteresis_left", 1) > 1:
        optimizer.hysteresis_left -= 1
        return optimizer.cur_scale
    return max(optimizer.cur_scale / optimizer.scale_factor, optimizer.min_loss_scale)


def raised(optimizer: Any) -> float:
    """The scale after a window without an overflow."""
    optimizer.hysteresis_left = getattr(optimizer, "hysteresis", 1)
    return optimizer.cur_scale * optimizer.scale_factor
