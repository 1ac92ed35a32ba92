"""The weights of a checkpoint: of ZeRO or not, of a pipeline or not."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from deepspeed.utils.fp32_weights import (
    ZERO_FILE,
    add_experts_rest,
    check_manifest,
    model_file,
    whole_weights,
)
from deepspeed.utils.pipeline_weights import MODEL, whole_weights_of


def any_whole_weights(folder: str | Path, verify: bool = True) -> OrderedDict[str, torch.Tensor]:
    """The state_dict of the checkpoint in ``folder``, also of one without ZeRO; on the CPU.

    Without ZeRO the weights have the precision of the training. Raises ValueError as
    :func:`whole_weights`.
    """
    folder = Path(folder)
    if (folder / MODEL).is_file():
        if verify:
            check_manifest(folder)
        return OrderedDict(whole_weights_of(folder))
    if any(ZERO_FILE.fullmatch(path.name) for path in folder.iterdir()):
        return whole_weights(folder, verify)
    if verify:
        check_manifest(folder)
    weights = {n: v for n, v in model_file(folder)["module"].items() if torch.is_tensor(v)}
    add_experts_rest(weights, folder)
    return OrderedDict(weights)
