"""Save a tag whole or not at all: beside its name first, with a manifest that is written last.

All files of a save go to the folder ``TAG.saving-XXXXXXXX``. When every process has written its
own, and has told the others their SHA-256 (taken while they were written), manifest.sha256 is
written, and the folder takes the tag's name. A tag that is saved anew is ``TAG.former`` until then;
a process that is killed leaves the former checkpoint, or the new one, under a name that loading
finds. Only after that does the file ``latest`` name the tag.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.utils.checkpoint_io import digests, write_whole
from deepspeed.utils.fp32_weights import FORMER, MANIFEST, SAVING, read_manifest

from .loading import gather

#: The folders that this process is to give their names.
_leads: set[str] = set()


def begin_saving(folder: Any, tag: str) -> str:
    """Make the folder that ``tag`` is written to; its name, to be used in the tag's place.

    All processes must call it. Hosts that do not share ``folder`` each make their own.

    Raises:
        ValueError: for a tag that is no name of a folder in ``folder``.
    """
    place = _place(folder, tag)
    asked = gather((str(place), uuid.uuid4().hex[:8]))
    first = [p for p, _ in asked].index(str(place))
    staging = place.with_name(f"{place.name}{SAVING}{asked[first][1]}")
    if dist.get_rank() == first:
        _clean_up(place)
        staging.mkdir(parents=True)
    dist.barrier()
    seen = gather((str(place), None if staging.is_dir() else socket.gethostname()))
    if seen.index(seen[dist.get_rank()]) == dist.get_rank():
        _leads.add(str(staging))
        staging.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    return tag + staging.name[len(place.name) :] if place == Path(folder, tag) else str(staging)


def finish_saving(folder: Any, tag: str, staging_tag: str) -> None:
    """Write the manifest and give the folder of ``staging_tag`` the name ``tag``.

    All processes must call it, each when it has written its files.

    Raises:
        RuntimeError: on all processes, where one could not.
    """
    place, staging = _place(folder, tag), Path(folder, staging_tag)
    own = {path: sha for path, sha in digests.items() if Path(path).parent == staging}
    told = gather((str(place), {Path(path).name: sha for path, sha in own.items()}))
    for path in own:
        del digests[path]
    error = None
    if str(staging) in _leads:
        _leads.discard(str(staging))
        files = {name: sha for p, part in told if p == str(place) for name, sha in part.items()}
        try:
            write_whole(staging / MANIFEST, _manifest(tag, files))
            _rename(staging, place)
        except OSError as found:
            error = f"the checkpoint {place} could not be finished: {found}"
    errors = [found for found in gather(error) if found]
    if errors:
        raise RuntimeError(errors[0])


def _place(folder: Any, tag: str) -> Path:
    """Where ``tag`` is; a link is followed."""
    place, folder = Path(folder, tag), Path(folder)
    above = (folder.resolve(), *folder.resolve().parents)
    if not tag or place.name == ".." or place.resolve() in above:
        raise ValueError(f"the tag is {tag!r}, expected the name of a folder in {folder}")
    return place.resolve() if place.is_symlink() else place


def _manifest(tag: str, files: dict[str, str]) -> bytes:
    """Lines that ``sha256sum --check`` reads; the last is the SHA-256 of those above."""
    time = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    text = f"# {' '.join(tag.split())} saved {time}\n".encode("utf-8", "replace")
    text += "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items())).encode()
    return text + f"# {hashlib.sha256(text).hexdigest()}\n".encode()


def _rename(staging: Path, place: Path) -> None:
    former = place.with_name(place.name + FORMER)
    if place.is_dir():
        place.rename(former)
    staging.rename(place)
    descriptor = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _clean_up(place)


def _clean_up(place: Path) -> None:
    """Remove what killed and finished saves have left, but not the only checkpoint."""
    for path in list(place.parent.iterdir()) if place.parent.is_dir() else []:
        if path.name.startswith(place.name + SAVING):
            shutil.rmtree(path, ignore_errors=True)
    former = place.with_name(place.name + FORMER)
    if not former.is_dir() or not place.is_dir():
        return
    try:
        listed = read_manifest(former) or {}
    except ValueError:
        listed = {}
    for path in list(former.iterdir()):
        ours = path.name in listed or path.name == MANIFEST
        ours = ours or path.name.endswith(("_states.pt", ".tmp")) or (place / path.name).exists()
        if not ours:  # the user's own
            path.rename(place / path.name)
    shutil.rmtree(former, ignore_errors=True)
