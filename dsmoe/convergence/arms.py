"""The arms of the comparison as cases of the benchmark, and what one token costs each of them.

M hidden width, L layers, E experts, k experts a token, f feed-forward width over M.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsmoe.benchmark.cases.case import Case, ModelCase, Parallel
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.flops import useful_flop
from dsmoe.common.errors import UsageError

FFN_MULTIPLIER = 8
TOP_K = 2
AUX_LOSS_COEFFICIENT = 0.01
# Bytes and the end of a document are 257 ids; a multiple of 64 suits the output layer's product.
VOCABULARY = 320
# Most by which the FLOPs per token of two arms may differ.
FLOPS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Arm:
    """One line of the figure. ``artifact``: AdaFactor takes ZeRO's partition for one vector.

    ``relative_step``: the step size is min(1e-2, 1/sqrt(t)) and the learning rate is ignored.
    """

    name: str
    words: str
    dense: bool = False
    aux_loss_coefficient: float = AUX_LOSS_COEFFICIENT
    artifact: bool = False
    relative_step: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("moe", "MoE, top-2, balance loss 0.01"),
        Arm("dense", "dense, equal FLOPs per token", dense=True),
        Arm("moe-no-aux", "MoE without the balance loss", aux_loss_coefficient=0.0),
        Arm(
            "moe-artifact-adafactor",
            "MoE, artifact's AdaFactor (relative step)",
            artifact=True,
            relative_step=True,
        ),
        Arm(
            "moe-artifact-adafactor-same-lr",
            "MoE, artifact's AdaFactor, same learning rate",
            artifact=True,
        ),
    )
}


@dataclass(frozen=True)
class ArmSetting:
    """What all arms share. Batch sizes are in sequences, ``sequence_length`` in tokens.

    ``rate_warmup``: steps over which the learning rate rises linearly; then it stays. Every
    ``eval_every`` steps the loss on the same ``eval_windows`` held-out windows is taken.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    sequence_length: int
    num_experts: int
    global_batch_size: int
    micro_batch_size: int
    steps: int
    eval_every: int
    eval_windows: int
    learning_rate: float
    rate_warmup: int
    precision: str
    second_expert_policy: str = "sampling"
    capacity_factor: float = 1.0
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.num_experts < TOP_K:
            raise UsageError(
                f"{self.num_experts} expert: expected at least {TOP_K} for top-{TOP_K}"
            )
        if self.global_batch_size % self.micro_batch_size:
            raise UsageError(
                f"micro-batches of {self.micro_batch_size} sequences do not make a batch of "
                f"{self.global_batch_size}; expected a divisor of it"
            )
        if self.precision == "fp16":
            # Case has a static loss scale of 1 for it, as the artifact; bf16 needs none.
            raise UsageError("precision fp16: expected fp32 or bf16, which need no loss scale")

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.sequence_length

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def case_of(arm: Arm, setting: ArmSetting, seed: int) -> Case:
    """``arm`` as a case of the benchmark, on one process. Raises UsageError for impossible sizes.

    In place of a mixture layer, where k experts of width f·M work on a token, the dense model
    spreads the same work over all of its layers: (f + f·k) / 2 each, 12 M for f = 8 and k = 2.
    """
    sizes = {
        "hidden_size": setting.hidden_size,
        "num_layers": setting.num_layers,
        "num_heads": setting.num_heads,
        "sequence_length": setting.sequence_length,
        "vocab_size": VOCABULARY,
    }
    if arm.dense:
        wide = (FFN_MULTIPLIER + FFN_MULTIPLIER * TOP_K) // 2
        model = ModelCase(arm.name, num_experts=1, ffn_multiplier=wide, top_k=1, **sizes)
    else:
        model = ModelCase(
            arm.name,
            num_experts=setting.num_experts,
            ffn_multiplier=FFN_MULTIPLIER,
            top_k=TOP_K,
            **sizes,
        )
    return Case(
        suite="convergence",
        model=model,
        parallel=Parallel(1),
        global_batch_size=setting.global_batch_size,
        micro_batches=setting.global_batch_size // setting.micro_batch_size,
        precision=setting.precision,
        remat=False,
        adafactor_mode="artifact" if arm.artifact else "sharded",
        learning_rate=setting.learning_rate,
        weight_decay=0.0,
        dropout=0.0,
        capacity_factor=setting.capacity_factor,
        second_expert_policy=setting.second_expert_policy,
        aux_loss_coefficient=0.0 if arm.dense else arm.aux_loss_coefficient,
        flat_gradients=True,
        compiled=setting.compiled,
        cuda_graph=setting.compiled,
        warmup=0,
        iterations=setting.steps,
        seed=seed,
        source="dsmoe converge",
    )


def config_of(arm: Arm, case: Case, device: str) -> dict[str, Any]:
    """The DeepSpeed configuration of ``case`` on ``device`` (cpu or cuda)."""
    config = deepspeed_config(case, device)
    config["optimizer"]["params"]["relative_step"] = arm.relative_step
    return config


def flops_per_token(model: ModelCase) -> float:
    """Operations of a training step for one token, gate excluded; flops.useful_flop has the
    formula. The k experts of a token are counted whole, whether or not it was dropped."""
    return useful_flop(model, 1) / model.sequence_length


def active_parameters(model: ModelCase, parameters: int) -> int:
    """Of ``parameters``, those that work on one token: k of the E experts of a mixture layer."""
    width = model.ffn_multiplier * model.hidden_size
    expert = 2 * width * model.hidden_size + width + model.hidden_size
    return parameters - model.num_layers // 2 * (model.num_experts - model.top_k) * expert


def check_equal_flops(models: list[ModelCase]) -> float:
    """The largest FLOPs per token of ``models`` over the smallest, less 1.

    Raises UsageError above FLOPS_TOLERANCE: the arms would not be comparable.
    """
    costs = {model.name: flops_per_token(model) for model in models}
    apart = max(costs.values()) / min(costs.values()) - 1
    if apart > FLOPS_TOLERANCE:
        found = ", ".join(f"{name} {cost / 1e6:.1f} MFLOP" for name, cost in costs.items())
        raise UsageError(
            f"FLOPs per token differ by {100 * apart:.1f} % ({found}); expected at most "
            f"{100 * FLOPS_TOLERANCE:.0f} %"
        )
    return apart
