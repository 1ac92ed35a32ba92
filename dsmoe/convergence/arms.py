"""The arms of the comparison as cases of the benchmark, and what one token costs each of them.

M hidden width, L layers, E experts, k experts a token, f feed-forward width over M.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.flops import useful_flop
from dsmoe.benchmark.cases.suites import Case, ModelCase, Parallel
from dsmoe.common.errors import UsageError

FFN_FACTOR = 8
TOP_K = 2
AUXILIARY = 0.01
# Bytes and the end of a document are 257 ids; a multiple of 64 suits the output layer's product.
VOCABULARY = 320
# Most by which the FLOPs per token of two arms may differ.
FLOPS_TOLERANCE = 0.01
# One process on a small model: the suites' bucket would be larger than all of its gradients.
BUCKET_ELEMENTS = 50_000_000


@dataclass(frozen=True)
class Arm:
    """One line of the figure. ``artifact``: AdaFactor takes ZeRO's partition for one vector.

    ``relative_step``: the step size is min(1e-2, 1/sqrt(t)) and the learning rate is ignored.
    """

    name: str
    words: str
    dense: bool = False
    auxiliary: float = AUXILIARY
    artifact: bool = False
    relative_step: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("moe", "MoE, top-2, balance loss 0.01"),
        Arm("dense", "dense, equal FLOPs per token", dense=True),
        Arm("moe-no-aux", "MoE without the balance loss", auxiliary=0.0),
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
class Setting:
    """What all arms share. ``batch`` and ``micro_batch`` in sequences, ``sequence`` in tokens.

    ``rate_warmup``: steps over which the learning rate rises linearly; then it stays. Every
    ``eval_every`` steps the loss on the same ``eval_windows`` held-out windows is taken.
    """

    hidden: int
    layers: int
    heads: int
    sequence: int
    experts: int
    batch: int
    micro_batch: int
    steps: int
    eval_every: int
    eval_windows: int
    learning_rate: float
    rate_warmup: int
    precision: str
    second_choice: str = "sampling"
    capacity_factor: float = 1.0
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.experts < TOP_K:
            raise UsageError(f"{self.experts} expert: expected at least {TOP_K} for top-{TOP_K}")
        if self.batch % self.micro_batch:
            raise UsageError(
                f"micro-batches of {self.micro_batch} sequences do not make a batch of "
                f"{self.batch}; expected a divisor of it"
            )
        if self.precision == "fp16":
            # Case has a static loss scale of 1 for it, as the artifact; bf16 needs none.
            raise UsageError("precision fp16: expected fp32 or bf16, which need no loss scale")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.sequence

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def case_of(arm: Arm, setting: Setting, seed: int) -> Case:
    """``arm`` as a case of the benchmark, on one process. Raises UsageError for impossible sizes.

    In place of a mixture layer, where k experts of width f·M work on a token, the dense model
    spreads the same work over all of its layers: (f + f·k) / 2 each, 12 M for f = 8 and k = 2.
    """
    sizes = {
        "hidden": setting.hidden,
        "layers": setting.layers,
        "heads": setting.heads,
        "sequence": setting.sequence,
        "vocab": VOCABULARY,
    }
    if arm.dense:
        wide = (FFN_FACTOR + FFN_FACTOR * TOP_K) // 2
        model = ModelCase(arm.name, experts=1, ffn_factor=wide, top_k=1, **sizes)
    else:
        model = ModelCase(
            arm.name, experts=setting.experts, ffn_factor=FFN_FACTOR, top_k=TOP_K, **sizes
        )
    return Case(
        suite="convergence",
        model=model,
        parallel=Parallel(1),
        global_batch=setting.batch,
        micro_batches=setting.batch // setting.micro_batch,
        precision=setting.precision,
        remat=False,
        adafactor_mode="artifact" if arm.artifact else "sharded",
        learning_rate=setting.learning_rate,
        weight_decay=0.0,
        dropout=0.0,
        capacity_factor=setting.capacity_factor,
        second_choice=setting.second_choice,
        auxiliary=0.0 if arm.dense else arm.auxiliary,
        flat_gradients=True,
        compiled=setting.compiled,
        cuda_graph=setting.compiled,
        warmup=0,
        iterations=setting.steps,
        seed=seed,
        source="dsmoe.convergence",
    )


def config_of(arm: Arm, case: Case, device: str) -> dict[str, Any]:
    """The DeepSpeed configuration of ``case`` on ``device`` (cpu or cuda)."""
    config = deepspeed_config(case, device)
    config["optimizer"]["params"]["relative_step"] = arm.relative_step
    zero = config["zero_optimization"]
    for name in ("allgather_bucket_size", "reduce_bucket_size"):
        zero[name] = min(zero[name], BUCKET_ELEMENTS)
    zero["overlap_comm"] = False  # there is nobody to communicate with
    return config


def flops_per_token(model: ModelCase) -> float:
    """Operations of a training step for one token, gate excluded; flops.useful_flop has the
    formula. The k experts of a token are counted whole, whether or not it was dropped."""
    return useful_flop(model, 1) / model.sequence


def active_parameters(model: ModelCase, parameters: int) -> int:
    """Of ``parameters``, those that work on one token: k of the E experts of a mixture layer."""
    width = model.ffn_factor * model.hidden
    expert = 2 * width * model.hidden + width + model.hidden
    return parameters - model.layers // 2 * (model.experts - model.top_k) * expert


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
