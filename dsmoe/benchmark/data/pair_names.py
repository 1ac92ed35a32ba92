"""The names of a token pair's two files; needs no numpy, as a command's help does not."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence, Union

from dsmoe.common.files import expanded, is_file

PathLike = Union[str, Path]


def pair_paths(prefix: PathLike) -> tuple[Path, Path]:
    """The (.bin, .idx) paths of ``prefix``, which may itself end in .bin or .idx."""
    text = str(prefix)
    if text.endswith((".bin", ".idx")):
        text = text[:-4]
    return Path(text + ".bin"), Path(text + ".idx")


def is_pair(paths: Sequence[PathLike]) -> bool:
    """Whether ``paths`` are one name, of an existing token pair, which is used as it is."""
    return len(paths) == 1 and all(map(is_file, pair_paths(expanded(paths[0]))))
