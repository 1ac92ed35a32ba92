"""One benchmark case as data: model, parallelism, batch, precision, optimizer.

The names are those of the model's own configuration (``MoELMConfig``, deepspeed/moe/lm/config.py),
so that a case says the same on both sides of the file ``case.json``.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Mapping

from dsmoe.common.errors import UsageError
from dsmoe.common.overlay_modules import model_sizes

# Fields of a model on which the number of its parameters does not depend.
UNCOUNTED = ("name", "num_heads", "top_k")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
MOE_IMPLEMENTATIONS = ("index", "einsum", "deepspeed")
SECOND_EXPERT_POLICIES = ("all", "random", "sampling")
OPTIMIZERS = ("adafactor", "adamw", "sgd")
ADAFACTOR_MODES = ("sharded", "artifact")
EXPERT_LAYOUTS = ("inside", "across")
PIPELINE_SCHEDULES = ("1f1b", "eager")
REDUCE = ("step", "micro_batch")
REDUCE_DTYPES = ("same", "fp32", "int8")
ATTENTION = ("fused", "math", "megatron")
# How a case is trained -> what its rows call the method. The paper's figure and the artifact's plot
# know "deepspeed": the baseline as it was published.
METHODS = {"dsmoe": "dsmoe", "published": "deepspeed"}
# The suites whose runs the paper's figure is drawn with.
PAPER_SUITES = ("artifact", "paper", "published")


def _require(good: bool, what: str) -> None:
    if not good:
        raise UsageError(f"case: {what}")


@dataclass(frozen=True)
class ModelCase:
    """Sizes of a decoder-only transformer whose every second layer is a mixture of experts.

    ``hidden_size`` H, ``num_layers`` L, ``num_experts`` E of a mixture layer, ``num_heads``,
    ``sequence_length`` S, ``vocab_size`` V, ``ffn_multiplier`` f (feed-forward width over H),
    ``top_k`` experts a token. Raises :class:`UsageError` for sizes that cannot be.
    """

    name: str
    hidden_size: int
    num_layers: int
    num_experts: int
    num_heads: int = model_sizes().NUM_HEADS
    sequence_length: int = model_sizes().SEQUENCE_LENGTH
    vocab_size: int = model_sizes().VOCAB_SIZE
    ffn_multiplier: int = model_sizes().FFN_MULTIPLIER
    top_k: int = model_sizes().TOP_K

    def __post_init__(self) -> None:
        sizes = asdict(self)
        del sizes["name"]
        for key, value in sizes.items():
            _require(value >= 1, f"{self.name}: {key} is {value}, expected at least 1")
        _require(
            self.hidden_size % self.num_heads == 0,
            f"{self.name}: num_heads {self.num_heads} does not divide hidden_size "
            f"{self.hidden_size}; expected a multiple of {self.num_heads}",
        )
        _require(
            self.num_layers % 2 == 0,
            f"{self.name}: num_layers is {self.num_layers}, and every second one is a mixture; "
            "expected an even number",
        )
        _require(
            self.top_k <= self.num_experts,
            f"{self.name}: num_experts is {self.num_experts} and a token goes to {self.top_k}; "
            f"expected at least {self.top_k} experts",
        )

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, by the closed formula of deepspeed/moe/lm/sizes.py."""
        sizes = asdict(self)
        return int(
            model_sizes().count_parameters(
                **{name: sizes[name] for name in sizes if name not in UNCOUNTED}
            )
        )


@dataclass(frozen=True)
class Parallel:
    """``processes``, in ``pipeline_parallel_size`` stages of consecutive ones; in a stage
    ``expert_parallel_size`` of them share the experts.

    ``expert_layout``: consecutive ones (inside a host, where they fit) or one of each host's
    (across hosts); see placement.py. ``pipeline_schedule``: how far stages run ahead (overlay,
    deepspeed/moe/pipeline/schedule.py); without a pipeline it is 1f1b.
    """

    processes: int
    expert_parallel_size: int = 1
    zero_stage: int = 2
    expert_layout: str = "inside"
    pipeline_parallel_size: int = 1
    pipeline_schedule: str = "1f1b"

    @property
    def data_parallel_size(self) -> int:
        """Processes of a stage, each with micro-batches of its own."""
        return self.processes // self.pipeline_parallel_size

    @property
    def copies(self) -> int:
        """Processes that hold the same experts."""
        return self.data_parallel_size // self.expert_parallel_size

    def __post_init__(self) -> None:
        _require(self.processes >= 1, f"{self.processes} processes, expected at least 1")
        stages = self.pipeline_parallel_size
        _require(
            stages >= 1 and self.processes % stages == 0,
            f"{stages} pipeline stages do not divide {self.processes} processes; expected a "
            "divisor with --pipeline",
        )
        of = f"the {self.data_parallel_size} processes of a stage"
        of = of if stages > 1 else f"{self.processes} processes"
        _require(
            self.expert_parallel_size >= 1
            and self.data_parallel_size % self.expert_parallel_size == 0,
            f"expert_parallel_size {self.expert_parallel_size} does not divide {of}",
        )
        _require(
            stages == 1 or self.expert_layout == "inside",
            f"expert_layout {self.expert_layout} with {stages} pipeline stages, whose experts are "
            "inside a stage; expected --expert-layout inside, or --pipeline 1",
        )
        _require(
            self.expert_layout in EXPERT_LAYOUTS,
            f"expert_layout {self.expert_layout!r}, expected one of {', '.join(EXPERT_LAYOUTS)}",
        )
        schedules = PIPELINE_SCHEDULES if stages > 1 else ("1f1b",)
        _require(
            self.pipeline_schedule in schedules,
            f"the pipeline's schedule is {self.pipeline_schedule!r} with --pipeline {stages}; "
            f"expected {' or '.join(schedules)}",
        )
        _require(
            self.zero_stage in (0, 1, 2),
            f"ZeRO stage {self.zero_stage} cannot train a mixture of experts; expected 0, 1 or 2: "
            "stage 3 of this DeepSpeed cuts every parameter over all processes, the experts of "
            "single processes too; take --zero-stage 2",
        )
        _require(
            stages == 1 or self.zero_stage < 2,
            f"ZeRO stage 2 with {stages} pipeline stages, which sum the gradients of all "
            "micro-batches before they reduce them; expected --zero-stage 1 or 0, or --pipeline 1",
        )


@dataclass(frozen=True)
class Case:
    """One run: ``global_batch_size`` sequences a step, in ``micro_batches`` on each process.

    ``capacity_factor``, ``min_capacity`` and ``second_expert_policy`` configure the router;
    ``aux_loss_coefficient`` is that of the balance loss. ``loss_scale`` 0 means dynamic, and is for
    fp16 alone; ``adafactor_mode`` is for AdaFactor alone. ``moe_implementation``: this project's
    layer by index or in the product form, or DeepSpeed's own. ``compiled``: the training pass goes
    through torch.compile; ``flat_gradients``: ZeRO takes the gradients of a micro-batch together;
    ``reduce``: and reduces them once a step or in every micro-batch (None: stage 1 once a step in
    fp32, stage 2 in every micro-batch); ``reduce_dtype``: in messages of this data type (None: the
    model's; int8 is for weights too); ``hierarchical``: once a step, inside each host first (None:
    with gloo alone), True: tokens too; ``reduce_reason``: why, where it was chosen (reduction.py);
    ``cuda_graph``: the passes of a micro-batch are one CUDA graph. ``deterministic``: two runs on
    one card give the same bits, at a cost in time. ``warmup`` steps are run before ``iterations``
    steps are measured. ``artifact_ids``: every token becomes 0 or 1, as
    in the artifact. ``source`` says where the settings come from; ``method`` whether they are
    this project's or those that were published (published.py).

    Raises :class:`UsageError` for settings that do not go together.
    """

    suite: str
    model: ModelCase
    parallel: Parallel
    global_batch_size: int
    micro_batches: int
    precision: str = "fp16"
    loss_scale: float = 1.0
    remat: bool = True
    optimizer: str = "adafactor"
    adafactor_mode: str = "sharded"
    learning_rate: float = 1.5e-4
    weight_decay: float = 1e-2
    gradient_clipping: float = 1.0
    dropout: float = 0.1
    capacity_factor: float = 1.0
    min_capacity: int = 4
    second_expert_policy: str = "sampling"
    moe_implementation: str = "index"
    attention: str = "fused"
    compiled: bool = False
    flat_gradients: bool = False
    reduce: str | None = None
    reduce_dtype: str | None = None
    hierarchical: bool | None = None
    reduce_reason: str = ""
    cuda_graph: bool = False
    aux_loss_coefficient: float = 0.0
    warmup: int = 1
    iterations: int = 5
    seed: int = 1234
    deterministic: bool = False
    artifact_ids: bool = False
    source: str = ""
    method: str = "dsmoe"

    def __post_init__(self) -> None:
        name, ranks = f"{self.suite} {self.model.name}", self.parallel.data_parallel_size
        _require(
            self.micro_batches >= 1 and self.global_batch_size % (ranks * self.micro_batches) == 0,
            f"{name}: {ranks} processes times {self.micro_batches} micro-batches do not divide "
            f"the global batch of {self.global_batch_size}",
        )
        _require(
            self.model.num_experts % self.parallel.expert_parallel_size == 0,
            f"{name}: expert_parallel_size {self.parallel.expert_parallel_size} does not divide "
            f"{self.model.num_experts} experts",
        )
        for value, known in (
            (self.precision, PRECISIONS),
            (self.second_expert_policy, SECOND_EXPERT_POLICIES),
            (self.moe_implementation, MOE_IMPLEMENTATIONS),
            (self.optimizer, OPTIMIZERS),
            (self.adafactor_mode, ADAFACTOR_MODES),
            (self.attention, ATTENTION),
            (self.method, tuple(METHODS)),
        ):
            _require(value in known, f"{name}: {value!r}, expected one of {', '.join(known)}")
        _require(
            not self.flat_gradients or self.parallel.zero_stage > 0,
            f"{name}: flat_gradients with ZeRO stage 0, which has no partitions; expected stage 1 "
            "or 2, or --no-flat-gradients",
        )
        _require(
            self.reduce in (None, *REDUCE),
            f"{name}: reduce is {self.reduce!r}, expected one of {', '.join(REDUCE)}",
        )
        _require(
            self.reduce is None or self.flat_gradients,
            f"{name}: reduce {self.reduce} without flat_gradients, which it needs; expected "
            "--flat-gradients with ZeRO stage 1 or 2, or no --reduce",
        )
        _require(
            self.reduce_dtype in (None, *REDUCE_DTYPES),
            f"{name}: reduce_dtype is {self.reduce_dtype!r}, expected one of "
            f"{', '.join(REDUCE_DTYPES)}",
        )
        _require(
            self.reduce_dtype is None
            or self.reduce == "step"
            or (self.reduce == "micro_batch" and self.reduce_dtype != "int8"),
            f"{name}: reduce_dtype {self.reduce_dtype} with reduce {self.reduce}; expected "
            f"--reduce step{'' if self.reduce_dtype == 'int8' else ' or micro_batch'}",
        )
        _require(
            self.hierarchical is None or self.reduce == "step",
            f"{name}: --{'' if self.hierarchical else 'no-'}hierarchical without --reduce step; "
            "expected both, or neither",
        )
        _require(
            not self.compiled or self.moe_implementation != "deepspeed",
            f"{name}: compiled with DeepSpeed's own MoE layer, which waits for the device; "
            "expected --moe-layer index, or --no-compiled",
        )
        _require(
            self.precision != "fp8" or self.moe_implementation != "deepspeed",
            f"{name}: precision fp8 with DeepSpeed's own MoE layer; expected --moe-layer index",
        )
        if self.parallel.pipeline_parallel_size > 1:
            self._check_pipeline(name)
        _require(
            not self.cuda_graph or (self.compiled and self.flat_gradients),
            f"{name}: cuda_graph without compiled and flat_gradients, which it needs; expected "
            "both, or --no-cuda-graph",
        )
        _require(self.seed >= 0, f"{name}: seed {self.seed} is negative")
        _require(self.iterations >= 1 and self.warmup >= 0, f"{name}: no iteration is measured")

    def _check_pipeline(self, name: str) -> None:
        """Raises UsageError for what a pipeline does not offer, with the alternative."""
        stages, layers = self.parallel.pipeline_parallel_size, self.model.num_layers
        _require(
            stages <= layers,
            f"{name}: {stages} pipeline stages for {layers} layers; expected --pipeline of at most "
            f"{layers}",
        )
        for found, what, instead in (
            (self.cuda_graph, "cuda_graph, which records one micro-batch", "--no-cuda-graph"),
            (self.moe_implementation == "deepspeed", "DeepSpeed's MoE layer", "--moe-layer index"),
            (self.reduce == "micro_batch", "reduce micro_batch", "--reduce step"),
            (
                self.parallel.zero_stage == 1 and not self.flat_gradients,
                "gradients that are not flat",
                "--flat-gradients, or --zero-stage 0",
            ),
        ):
            _require(
                not found,
                f"{name}: {stages} pipeline stages with {what}; expected {instead}, or "
                "--pipeline 1",
            )

    @property
    def micro_batch_size(self) -> int:
        """Sequences in one micro-batch on one process."""
        return self.global_batch_size // (self.parallel.data_parallel_size * self.micro_batches)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.model.sequence_length

    @property
    def weight_precision(self) -> str:
        """Of weights and activations: fp32, fp16 or bf16 (with FP8 products too)."""
        return "bf16" if self.precision == "fp8" else self.precision

    def model_settings(self) -> dict[str, Any]:
        """Keyword arguments of ``MoELMConfig``, whose names these fields have."""
        settings = {name: getattr(self, name) for name in MODEL_SETTINGS}
        sizes = asdict(self.model)
        del sizes["name"]
        more = {"eval_capacity_factor": self.capacity_factor, "fp8": self.precision == "fp8"}
        return {**sizes, **settings, **more}

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as ``case.json`` and result records keep them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Case:
        """The case of which :meth:`to_dict` made ``values``. Raises :class:`UsageError`."""
        try:
            return Case(
                **{
                    **values,
                    "model": ModelCase(**values["model"]),
                    "parallel": Parallel(**values["parallel"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise UsageError(f"case: {error}; expected what Case.to_dict writes") from error


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """A case as a record keeps it, in today's names and with the settings that it lacks.

    Records of schema 1 have other names; a setting that an earlier version did not know had the
    value that is the default now.
    """
    current = {EARLIER_NAMES.get(name, name): value for name, value in values.items()}
    for part in ("model", "parallel"):
        if isinstance(current.get(part), dict):
            current[part] = {EARLIER_NAMES.get(k, k): v for k, v in current[part].items()}
    if isinstance(current.get("parallel"), dict):
        current["parallel"] = {**_defaults(Parallel), **current["parallel"]}
    return {**_defaults(Case), **current}


def _defaults(kind: Any) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


# The fields of a case that MoELMConfig has too.
MODEL_SETTINGS = (
    "capacity_factor",
    "min_capacity",
    "second_expert_policy",
    "moe_implementation",
    "attention",
    "aux_loss_coefficient",
    "dropout",
    "remat",
)

# Names of schema 1 (until version 0.1.0) -> today's.
EARLIER_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_layers",
    "experts": "num_experts",
    "heads": "num_heads",
    "sequence": "sequence_length",
    "vocab": "vocab_size",
    "ffn_factor": "ffn_multiplier",
    "expert_parallel": "expert_parallel_size",
    "global_batch": "global_batch_size",
    "clip": "gradient_clipping",
    "second_choice": "second_expert_policy",
    "moe_layer": "moe_implementation",
    "auxiliary": "aux_loss_coefficient",
}
