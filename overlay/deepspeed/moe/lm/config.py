"""The configuration of the MoE language model: plain data, checked at construction."""

from __future__ import annotations

import dataclasses
from typing import Any, Iterable

from deepspeed.moe.fp8.quantise import FORMAT

from . import sizes

_POLICIES = ("all", "random", "sampling")
_RENORMALISE = ("kept", "chosen")
_IMPLEMENTATIONS = ("index", "einsum", "deepspeed")
_ATTENTION = ("fused", "math", "megatron")
_NOISE = (None, "Jitter", "RSample")
_WHOLE_NUMBERS = (
    "hidden_size",
    "num_layers",
    "num_experts",
    "num_heads",
    "vocab_size",
    "sequence_length",
    "ffn_multiplier",
    "moe_every",
)


def _refuse(field: str, value: Any, expected: str) -> None:
    raise ValueError(f"MoELMConfig.{field} is {value!r}; expected {expected}")


@dataclasses.dataclass(frozen=True)
class MoELMConfig:
    """Sizes and choices of a decoder-only transformer with a mixture of experts.

    The defaults are those of the suite of the Alpa artifact (OSDI 2022): 16 heads, vocabulary
    32000, sequences of 1024 tokens, feed-forward width 8 times the model width, experts in every
    second layer, top-2 gating. ``num_experts=1`` is the dense model of the same family.

    Raises:
        ValueError: naming the field, its value and what is expected.
    """

    hidden_size: int
    """Model width M (the artifact's H)."""
    num_layers: int
    num_experts: int
    """Experts of an MoE layer over all processes; 1 means no MoE layer."""
    num_heads: int = sizes.NUM_HEADS
    vocab_size: int = sizes.VOCAB_SIZE
    sequence_length: int = sizes.SEQUENCE_LENGTH
    """Longest sequence: the number of learned positions."""
    ffn_multiplier: int = sizes.FFN_MULTIPLIER
    moe_every: int = sizes.MOE_EVERY
    """The last layer of every so many has experts: 2 gives layers 1, 3, 5, ..."""
    top_k: int = sizes.TOP_K
    capacity_factor: float = 1.0
    eval_capacity_factor: float = 1.0
    min_capacity: int = 4
    """Least number of slots of an expert in one group."""
    group_size: int | None = None
    """Tokens of a local group (GShard's S); None: all the tokens of this process's micro-batch."""
    second_expert_policy: str = "sampling"
    """In training: "all", "random" (GShard) or "sampling" (DeepSpeed). Evaluation uses "all"."""
    renormalize: str = "kept"
    """Weights add up to 1 over the choices "kept" (DeepSpeed) or the two "chosen" (GShard)."""
    drop_tokens: bool = True
    """False: every expert has room for a whole group, which costs num_experts times the memory."""
    noisy_gate_policy: str | None = None
    aux_loss_coefficient: float = 0.01
    z_loss_coefficient: float = 0.0
    dropout: float = 0.0
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    moe_implementation: str = "index"
    """"index" (gathers), "einsum" (the product form) or "deepspeed" (bd3ebd's own layer)."""
    attention: str = "fused"
    """"fused" (torch's scaled_dot_product_attention where there is one), "math" (written out, the
    softmax in fp32) or "megatron" (written out in the model's precision, as in the artifact)."""
    init_std: float = 0.02
    fp8: bool = False
    """Feed-forward layers and experts train with products in FP8 (``deepspeed/moe/fp8``)."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_numbers()
        self._check_choices()
        if self.moe_implementation == "deepspeed" and self.moe_layers:
            self._check_deepspeed()

    def _check_sizes(self) -> None:
        for field in _WHOLE_NUMBERS:
            self._check_whole(field, least=1)
        self._check_whole("top_k", least=1)
        self._check_whole("min_capacity", least=0)
        if self.group_size is not None:
            self._check_whole("group_size", least=1)
        if self.hidden_size % self.num_heads:
            _refuse("hidden_size", self.hidden_size, f"a multiple of num_heads = {self.num_heads}")
        if self.top_k not in (1, 2):
            _refuse("top_k", self.top_k, "1 or 2")
        if self.num_experts > 1 and not self.moe_layers:
            _refuse("moe_every", self.moe_every, f"at most num_layers = {self.num_layers}")

    def _check_whole(self, field: str, least: int) -> None:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            _refuse(field, value, f"a whole number, {least} or more")

    def _check_numbers(self) -> None:
        for field in ("capacity_factor", "eval_capacity_factor", "init_std"):
            value = getattr(self, field)
            if not _is_number(value) or not 0 < value < float("inf"):
                _refuse(field, value, "a number above 0")
        for field in ("aux_loss_coefficient", "z_loss_coefficient"):
            value = getattr(self, field)
            if not _is_number(value) or not 0 <= value < float("inf"):
                _refuse(field, value, "a number, 0 or more")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            _refuse("dropout", self.dropout, "a number from 0 to below 1")
        for field in ("drop_tokens", "remat", "fp8"):
            if not isinstance(getattr(self, field), bool):
                _refuse(field, getattr(self, field), "True or False")

    def _check_choices(self) -> None:
        self._check_one_of("second_expert_policy", _POLICIES)
        self._check_one_of("renormalize", _RENORMALISE)
        self._check_one_of("moe_implementation", _IMPLEMENTATIONS)
        self._check_one_of("attention", _ATTENTION)
        self._check_one_of("noisy_gate_policy", _NOISE)
        if self.fp8 and FORMAT is None:
            _refuse("fp8", True, "False with this torch, which has no FP8; use torch 2.1 or later")
        if self.noisy_gate_policy == "RSample" and self.top_k == 2:
            _refuse(
                "noisy_gate_policy",
                self.noisy_gate_policy,
                "None or 'Jitter' with top_k = 2 (RSample perturbs the choice of top_k = 1 only;"
                " for a sampled second expert set second_expert_policy to 'sampling')",
            )

    def _check_one_of(self, field: str, allowed: Iterable[Any]) -> None:
        allowed = tuple(allowed)
        if getattr(self, field) not in allowed:
            _refuse(field, getattr(self, field), f"one of {', '.join(map(repr, allowed))}")

    def _check_deepspeed(self) -> None:
        """Refuse settings that DeepSpeed's own MoE layer would ignore."""
        why = "with moe_implementation 'deepspeed', which has no other setting; use 'index'"
        if self.fp8:
            _refuse("fp8", self.fp8, f"False {why}")
        if self.group_size is not None:
            _refuse("group_size", self.group_size, f"None {why}")
        if self.z_loss_coefficient:
            _refuse("z_loss_coefficient", self.z_loss_coefficient, f"0 {why}")
        if self.renormalize != "kept":
            _refuse("renormalize", self.renormalize, f"'kept' {why}")
        if self.top_k == 2 and self.second_expert_policy != "sampling":
            _refuse("second_expert_policy", self.second_expert_policy, f"'sampling' {why}")

    @property
    def ffn_size(self) -> int:
        """Hidden width of a feed-forward layer, and of each expert."""
        return self.ffn_multiplier * self.hidden_size

    @property
    def moe_layers(self) -> list[int]:
        """Numbers of the layers that have experts."""
        if self.num_experts == 1:
            return []
        return list(range(self.moe_every - 1, self.num_layers, self.moe_every))


def config_for(name: str, **changes: Any) -> MoELMConfig:
    """The configuration of a size of :data:`.sizes.SIZES`, with ``changes`` to its other fields.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in sizes.SIZES:
        raise ValueError(f"model size is {name!r}; expected one of {', '.join(sizes.SIZES)}")
    return MoELMConfig(**{**sizes.SIZES[name]._asdict(), **changes})


def parameter_count(config: MoELMConfig, expert_parallel_size: int = 1) -> int:
    """:func:`.sizes.count_parameters` of a configuration."""
    return sizes.count_parameters(
        config.hidden_size,
        config.num_layers,
        config.num_experts,
        config.vocab_size,
        config.sequence_length,
        config.ffn_multiplier,
        config.moe_every,
        expert_parallel_size,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
