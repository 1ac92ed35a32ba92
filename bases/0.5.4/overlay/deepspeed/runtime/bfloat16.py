"""The configuration's section "bfloat16", which release 0.5.4 does not know.

The later releases train with ZeRO-2 in bfloat16 without a loss scale. The same is offered here,
also with ZeRO-1, which shares that optimizer, and without ZeRO.
"""

from __future__ import annotations

from typing import Any

#: Both names of the section: that of the next releases, and the later short one.
SECTIONS = ("bfloat16", "bf16")


def bfloat16_enabled(config: dict[str, Any], fp16: bool, zero_stage: int) -> bool:
    """Whether ``config``, a DeepSpeed configuration, asks for bfloat16.

    Raises ValueError where that contradicts fp16 or amp, or for ZeRO-3.
    """
    enabled = any(config.get(name, {}).get("enabled", False) for name in SECTIONS)
    if not enabled:
        return False
    if fp16 or config.get("amp", {}).get("enabled", False):
        raise ValueError("bfloat16 is enabled together with fp16 or amp; expected one of them")
    if zero_stage > 2:
        raise ValueError("bfloat16 is enabled with ZeRO-3; expected stage 0, 1 or 2")
    return True
