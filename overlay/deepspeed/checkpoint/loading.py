"""Compare a checkpoint's files with its manifest before anything of it is loaded.

The files are divided among the processes, so that each is read for its SHA-256 once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.utils import logger
from deepspeed.utils.fp32_weights import MANIFEST, advice, fault, read_manifest


def gather(value: Any) -> list[Any]:
    """``value`` of every process."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_files(engine: Any, folder: Any, tag: Any, weights_only: bool) -> None:
    """Refuse a checkpoint whose files are not as they were saved. All processes must call it.

    ``weights_only`` leaves out the files of the optimizer. One without a manifest, of an earlier
    version, is loaded with a line that says so. With ``"checkpoint": {"verify": false}`` only
    missing files are found.

    Raises:
        RuntimeError: on all processes, naming the file and the tag that was saved before it.
    """
    place = Path(folder) / str(tag)
    verify = (engine._config._param_dict.get("checkpoint") or {}).get("verify", True)
    found, listed = [], None
    try:
        listed = read_manifest(place)
        found = _faults(place, listed or {}, weights_only, verify)
    except (OSError, ValueError) as error:
        found = [str(error)]
    faults = sorted(text for part in gather(found) for text in part)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        weights = ", or load the weights alone with load_module_only=True"
        only = weights if all("optim_states.pt" in text for text in faults) else ""
        raise RuntimeError(f"checkpoint file {faults[0]}{more}: {advice(place)}{only}")
    if listed is None and dist.get_rank() == 0:
        logger.warning(
            f"{place} has no {MANIFEST} (an earlier version saved it): no file is verified"
        )


def _faults(place: Path, listed: dict[str, str], weights_only: bool, verify: bool) -> list[str]:
    """What this process finds in its share of the files, the largest of which are dealt first."""
    names = [n for n in listed if not (weights_only and n.endswith("optim_states.pt"))]
    sizes = {n: (place / n).stat().st_size if (place / n).is_file() else 0 for n in names}
    names.sort(key=lambda n: (-sizes[n], n))
    own = names[dist.get_rank() :: dist.get_world_size()]
    if not verify:
        own = [name for name in own if not (place / name).is_file()]
    return [text for text in (fault(place, name, listed) for name in own) if text]
