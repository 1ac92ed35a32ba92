"""Names that torch has moved since this DeepSpeed was released; each works from torch 1.10 on."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed.distributed_c10d as c10d

# Public since torch 1.13; the private name warns at every call from 2.x on.
get_global_rank = getattr(c10d, "get_global_rank", None) or c10d._get_global_rank

if hasattr(torch, "amp") and hasattr(torch.amp, "custom_fwd"):  # torch 2.4 on
    custom_fwd: Any = functools.partial(torch.amp.custom_fwd, device_type="cuda")
    custom_bwd: Any = functools.partial(torch.amp.custom_bwd, device_type="cuda")
else:
    custom_fwd = torch.cuda.amp.custom_fwd
    custom_bwd = torch.cuda.amp.custom_bwd
