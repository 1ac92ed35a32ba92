"""The DeepSpeed configuration of a case, generated whole and kept with its result."""

from __future__ import annotations

from typing import Any

from dsmoe.benchmark.cases.case import Case

# ZeRO reduces gradients bucket by bucket; a bucket is allocated whole at every backward pass.
BUCKET_ELEMENTS_GPU = 500_000_000
BUCKET_ELEMENTS_CPU = 5_000_000


def deepspeed_config(
    case: Case, device: str, tensorboard: tuple[str, str] | None = None
) -> dict[str, Any]:
    """The configuration that ``deepspeed.initialize`` is given for ``case`` on ``device``.

    ``train_batch_size`` is the case's global batch in sequences (the artifact's own file says
    8192 for 1024). ``device`` is ``cpu`` or ``cuda``. ``tensorboard`` is the folder of the event
    files and the name of this run below it.
    """
    bucket = BUCKET_ELEMENTS_GPU if device == "cuda" else BUCKET_ELEMENTS_CPU
    config: dict[str, Any] = {
        "train_batch_size": case.global_batch_size,
        "train_micro_batch_size_per_gpu": case.micro_batch_size,
        "gradient_accumulation_steps": case.micro_batches,
        "steps_per_print": 1_000_000,
        "gradient_clipping": case.gradient_clipping,
        "optimizer": _optimizer(case, device),
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
    }
    if case.parallel.zero_stage:
        config["zero_optimization"] = {
            "stage": case.parallel.zero_stage,
            "allgather_partitions": True,
            "reduce_scatter": True,
            "contiguous_gradients": True,
            "flat_gradients": _flat(case),
        }
        if not case.flat_gradients:  # which has one message for each group, and no buckets
            config["zero_optimization"].update(
                allgather_bucket_size=bucket,
                reduce_bucket_size=bucket,
                overlap_comm=device == "cuda",
            )
    if case.parallel.pipeline_parallel_size > 1:
        config["pipeline"] = {"schedule": case.parallel.pipeline_schedule}
    if case.precision == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": case.loss_scale}
    elif case.weight_precision == "bf16":
        config["bfloat16"] = {"enabled": True}
    if tensorboard:
        folder, name = tensorboard
        config["tensorboard"] = {"enabled": True, "output_path": folder, "job_name": name}
    return config


def _flat(case: Case) -> bool | dict[str, str | bool]:
    if case.reduce is None:
        return case.flat_gradients
    flat: dict[str, str | bool] = {"reduce": case.reduce}
    if case.reduce_dtype is not None:
        flat["dtype"] = case.reduce_dtype
    if case.hierarchical is not None:
        flat["hierarchical"] = case.hierarchical
    return flat


def _optimizer(case: Case, device: str) -> dict[str, Any]:
    rate = {"lr": case.learning_rate}
    decay = {"weight_decay": case.weight_decay}
    if case.optimizer == "adafactor":
        artifact = case.adafactor_mode == "artifact"
        # The artifact's optimizer was left at relative_step=True, which ignores lr.
        own: dict[str, Any] = {"relative_step": artifact, "mode": case.adafactor_mode}
        if case.method == "published":
            own["beta1"] = 0.9  # Megatron's default for Adam, which the script hands on
        return {"type": "Adafactor", "params": {**rate, **decay, **own}}
    if case.optimizer == "adamw":
        # torch's own: DeepSpeed's fused Adam is a CUDA extension that needs a compiler.
        fused = {"fused": True} if device == "cuda" else {}
        return {"type": "AdamW", "params": {**rate, **decay, "torch_adam": True, **fused}}
    return {"type": "SGD", "params": {**rate, **decay}}
