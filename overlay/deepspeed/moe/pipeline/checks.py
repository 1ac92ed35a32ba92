"""What a pipeline does not offer, refused before anything is made."""

from __future__ import annotations

from typing import Any

from deepspeed.moe.lm import MoELMConfig
from deepspeed.runtime.zero.flat_settings import KEY, flat_settings

from .schedule import AHEAD

# Section -> what it is switched on by, and why not. Each gives the alternative.
_SECTIONS = {
    "amp": "apex keeps copies of its own; use bfloat16 or fp16",
    "progressive_layer_drop": "a stage always has all of its layers; switch it off",
    "curriculum_learning": "messages between stages have one size; switch it off",
    "eigenvalue": "it runs the whole model; switch it off",
    "flops_profiler": "it runs the whole model; profile one process",
    "tensorboard": "the loss is in the last stage and the first one would write; switch it off",
    "elasticity": "stages do not change their number of processes; switch it off",
}


def check_config(config: dict[str, Any], stages: int) -> None:
    """Check a DeepSpeed configuration for a pipeline of ``stages``.

    Raises:
        ValueError: with what was found, what is expected and the alternative.
    """
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if stage not in (0, 1):
        raise ValueError(
            f"zero_optimization.stage is {stage} with a pipeline of {stages} stages; expected 0 or"
            " 1: gradients of all micro-batches are summed before they are reduced, so that a"
            " higher stage would save nothing"
        )
    flat = flat_settings(config)
    if flat is not None and flat.reduce == "micro_batch":
        raise ValueError(
            f"zero_optimization.{KEY}.reduce is micro_batch with a pipeline of {stages} stages;"
            " expected step: micro-batches of a pipeline overlap"
        )
    for name in ("offload_optimizer", "offload_param", "cpu_offload", "legacy_stage1"):
        if isinstance(zero, dict) and zero.get(name):
            raise ValueError(f"zero_optimization.{name} with a pipeline is not offered; remove it")
    for name, why in _SECTIONS.items():
        section = config.get(name)
        if isinstance(section, dict) and section.get("enabled"):
            raise ValueError(f"{name} is enabled with a pipeline of {stages} stages: {why}")
    if config.get("sparse_gradients"):
        raise ValueError("sparse_gradients with a pipeline is not offered; remove it")


def schedule_of(config: dict[str, Any]) -> str:
    """The ``pipeline.schedule`` of a DeepSpeed configuration. Raises ValueError for another."""
    section = config.get("pipeline")
    found = section.get("schedule", "1f1b") if isinstance(section, dict) else "1f1b"
    if found not in AHEAD:
        raise ValueError(f"pipeline.schedule is {found!r}; expected one of {', '.join(AHEAD)}")
    return str(found)


def check_model(config: MoELMConfig, stages: int) -> None:
    """Raises ValueError for more stages than layers, and DeepSpeed's own MoE layer."""
    if stages > config.num_layers:
        raise ValueError(
            f"{stages} pipeline stages for {config.num_layers} layers; expected at most"
            f" {config.num_layers}: take fewer stages"
        )
    if stages > 1 and config.moe_implementation == "deepspeed":
        raise ValueError(
            "moe_implementation is 'deepspeed' with a pipeline, and that layer counts over all"
            " processes; expected 'index' or 'einsum'"
        )
