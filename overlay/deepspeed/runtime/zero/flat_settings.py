"""What ``zero_optimization.flat_gradients`` of a DeepSpeed configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KEY = "flat_gradients"
REDUCE = ("step", "micro_batch")
DTYPES = ("same", "fp32", "int8")
_KEYS = ("reduce", "dtype", "bucket_size", "hierarchical")
BUCKET_SIZE = 2**23  # elements: 16 MiB of 16 bit


@dataclass(frozen=True)
class FlatSettings:
    """``reduce``: "step" or "micro_batch"; None leaves it to the stage, as ``true`` does: stage 2
    reduces every micro-batch in the model's dtype, stage 1 once before the step in fp32.

    ``dtype`` of the messages: the model's ("same"), "fp32" (gradients alone), or "int8"
    (blockwise, gradients with error feedback, weights as changes; for "step" alone).
    ``bucket_size``: elements that "step" reduces together. ``hierarchical``: where processes share
    hosts, "step" adds up inside each host first, and lets each host send every sum once (None: not
    with NCCL, where it has not been measured).
    """

    reduce: str | None = None
    dtype: str = "same"
    bucket_size: int = BUCKET_SIZE
    hierarchical: bool | None = None


#: What ``true`` asks for.
PLAIN = FlatSettings()


def flat_settings(config: dict[str, Any]) -> FlatSettings | None:
    """The settings in a DeepSpeed configuration; None where ``flat_gradients`` is off.

    Raises:
        ValueError: for a value that is none, with the key, what was found and what is expected.
    """
    zero = config.get("zero_optimization", {})
    wanted = zero.get(KEY, False) if isinstance(zero, dict) else False
    name = f"zero_optimization.{KEY}"
    if isinstance(wanted, bool):
        return PLAIN if wanted else None
    if not isinstance(wanted, dict):
        raise ValueError(f"{name} is {wanted!r}; expected true or false, or a mapping of reduce")
    for key in wanted:
        if key not in _KEYS:
            raise ValueError(f"{name}.{key} is unknown; expected one of {', '.join(_KEYS)}")
    reduce = wanted.get("reduce")
    if reduce not in REDUCE:
        raise ValueError(f"{name}.reduce is {reduce!r}; expected {' or '.join(REDUCE)}")
    dtype = wanted.get("dtype", "same")
    if dtype not in DTYPES:
        raise ValueError(f"{name}.dtype is {dtype!r}; expected {', '.join(DTYPES)}")
    if dtype == "int8" and reduce != "step":
        raise ValueError(f"{name}.dtype is int8 with reduce {reduce}; expected reduce step")
    size = wanted.get("bucket_size", BUCKET_SIZE)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}.bucket_size is {size!r}; expected a whole number of at least 1")
    hierarchical = wanted.get("hierarchical")
    if not (hierarchical is None or isinstance(hierarchical, bool)):
        raise ValueError(f"{name}.hierarchical is {hierarchical!r}; expected true or false")
    return FlatSettings(reduce, dtype, size, hierarchical)
