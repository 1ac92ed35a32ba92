"""A model as files that need no engine: ``model.safetensors`` and ``config.json``.

The weights are whole: those of all experts, by the names that the model in one process has, in the
precision that they were trained in.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Mapping

import torch
import torch.distributed as dist
from deepspeed.utils import groups
from deepspeed.utils.any_weights import any_whole_weights
from deepspeed.utils.checkpoint_io import write_whole

from .config import MoELMConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
#: The folder in the folder that the files are in until all are written.
STAGE = ".export.tmp"
ARCHITECTURE = "MoELM"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(
    kind: Any,
    checkpoint: Any,
    to: Any,
    config: MoELMConfig,
    precision: str,
    more: dict[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> int:
    """Write the checkpoint in the folder ``checkpoint`` (that of one tag) to the folder ``to``.

    An older export in ``to`` stays until all files of the new one are written. Ended in the moment
    of the change, it leaves a folder that :func:`load_exported` refuses; export to it again.

    Args:
        kind: the model's class, :class:`~deepspeed.moe.lm.model.MoELM`.
        config: of the model that was trained.
        precision: of the weights in the files: "fp32", "bf16" or "fp16".
        more: further entries of config.json.
        beside: further files: name, content.

    Returns:
        How many parameters there are.

    Raises:
        ValueError: where files of the checkpoint are missing, damaged or of another model.
        ImportError: where safetensors is missing.
    """
    library = _safetensors()
    weights = checkpoint_weights(kind, checkpoint, config, precision)
    values = {
        "architecture": ARCHITECTURE,
        "precision": precision,
        "model": dataclasses.asdict(config),
        **more,
    }
    files = {
        WEIGHTS: library.save(weights, {"format": "pt"}),
        **(beside or {}),
        CONFIG: _json(values),
    }
    _write_together(Path(to), files)
    return sum(value.numel() for value in weights.values())


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _write_together(folder: Path, files: dict[str, bytes]) -> None:
    """Write ``files``, of which CONFIG is the last, so that ``folder`` never seems whole with old
    and new ones."""
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)  # of an export that was killed
    stage.mkdir(parents=True)
    try:
        for name, content in files.items():
            write_whole(stage / name, content)
        write_whole(folder / CONFIG, _json({"architecture": ARCHITECTURE, "unfinished": True}))
        for name in files:
            (stage / name).replace(folder / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def checkpoint_weights(
    kind: Any, checkpoint: Any, config: MoELMConfig, precision: str
) -> dict[str, torch.Tensor]:
    """The whole weights of the checkpoint in ``checkpoint`` (the folder of one tag), by name.

    Raises ValueError as :func:`export`.
    """
    dtype = DTYPES[precision]
    weights = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in any_whole_weights(checkpoint).items()
        if torch.is_tensor(value)
    }
    _check(weights, _empty(kind, config), checkpoint)
    return weights


def load_exported(kind: Any, folder: Any, device: Any = "cpu") -> Any:
    """See :meth:`~deepspeed.moe.lm.model.MoELM.from_exported`."""
    values = read_config(folder)
    weights = _safetensors().load((Path(folder) / WEIGHTS).read_bytes())
    config = MoELMConfig(**values["model"])
    return model_of(kind, weights, config, values["precision"], folder).to(device)


def model_of(
    kind: Any, weights: dict[str, torch.Tensor], config: MoELMConfig, precision: str, where: Any
) -> Any:
    """The model with these weights, for evaluation. Raises ValueError naming ``where``."""
    model = _empty(kind, config)
    _check(weights, model, where)
    model.load_state_dict(weights)
    return model.to(DTYPES[precision]).eval()


def read_config(folder: Any) -> dict[str, Any]:
    """What ``config.json`` of an exported folder says. Raises ValueError for another folder."""
    place = Path(folder) / CONFIG
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place} cannot be read ({error}); expected a folder that dsmoe export wrote"
        ) from None
    if not isinstance(values, dict) or values.get("architecture") != ARCHITECTURE:
        raise ValueError(f"{place} is of another model, expected architecture {ARCHITECTURE}")
    if values.get("unfinished"):
        raise ValueError(f"{place}: an export to this folder was broken off; repeat it")
    return values


def one_process(num_experts: int) -> None:
    """Make the process group of this process alone, where the model has experts and none is."""
    if num_experts == 1:
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if not groups.expert_parallel_is_initialized():
        groups.initialize(ep_size=1)


def _empty(kind: Any, config: MoELMConfig) -> Any:
    one_process(config.num_experts)
    return kind(config, seed=0)


def _check(weights: dict[str, torch.Tensor], model: Any, where: Any) -> None:
    """Raises ValueError where a weight is missing, unknown or of another shape."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(set(shapes) | set(found)):
        if shapes.get(name) != found.get(name):
            raise ValueError(
                f"{where}: {name} is {found.get(name, 'missing')}; expected"
                f" {shapes.get(name, 'no such weight')}: the files are not of this model"
            )


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            "an exported model needs the package safetensors, which is not installed:"
            " pip install safetensors"
        ) from None
    return safetensors.torch
