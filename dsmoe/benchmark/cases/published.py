"""The baseline as the artifact's script ran it, for the cases of the paper.

Source: alpa-projects/alpa at commit 8350d913, osdi22_artifact/deepspeed/benchmark_moe.py (options
and suite), benchmark/deepspeed/ds_zero_stage_2_moe_config.json, and the model that it patched into
Megatron-LM v1.1.5. docs/reference/published.md compares it line by line with what is done here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.common.errors import UsageError

#: Settings of the script that a case of this project has otherwise.
SETTINGS: dict[str, Any] = {
    "method": "published",
    # DeepSpeed's own layer: gating by one-hot products, a sampled second expert, min_capacity 4
    "moe_implementation": "deepspeed",
    "second_expert_policy": "sampling",
    "min_capacity": 4,
    # scores, mask and softmax in fp16, with dropout
    "attention": "megatron",
    "dropout": 0.1,
    "precision": "fp16",
    "loss_scale": 1.0,
    "remat": True,
    # AdaFactor on ZeRO's flat partition, with relative_step, which ignores the learning rate
    "optimizer": "adafactor",
    "adafactor_mode": "artifact",
    "learning_rate": 1.5e-4,
    "weight_decay": 1e-2,
    "gradient_clipping": 1.0,
    # the loss of the router was computed and never added
    "aux_loss_coefficient": 0.0,
    "compiled": False,
    "flat_gradients": False,
    "cuda_graph": False,
    "warmup": 2,
    "iterations": 3,
}

# What a user may change without its being another method.
FREE = ("iterations", "warmup", "seed", "tensorboard", "deterministic", "artifact_ids")


def published(case: Case, suite: str | None = None) -> Case:
    """``case`` of the paper's suites, trained as it was published. Raises UsageError."""
    if case.suite not in ("artifact", "paper"):
        raise UsageError(
            f"--method published is for the cases of the suites artifact and paper, not of "
            f"{case.suite}; take --suite artifact, paper or published"
        )
    return dataclasses.replace(case, suite=suite or case.suite, **SETTINGS)


def refuse_changes(changes: Any) -> None:
    """Raises UsageError where a setting is changed that makes the method what it is."""
    for name, value in vars(changes).items():
        if name not in FREE and value is not None:
            raise UsageError(
                f"the published method with another {name}; expected the artifact's own settings: "
                "leave that option out, or take --method dsmoe"
            )
