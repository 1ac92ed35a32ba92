"""Facts that live in overlay/: read from there, without importing torch or DeepSpeed."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

from dsmoe.common.places import project_root


@functools.lru_cache(maxsize=None)
def load(path: str) -> ModuleType:
    """The module in file ``path`` of overlay/deepspeed, such as ``moe/lm/sizes.py``.

    For files that import nothing outside the standard library; each says so in its docstring.

    Raises:
        FileNotFoundError: if overlay/ has no such file.
    """
    file = project_root() / "overlay" / "deepspeed" / path
    name = "dsmoe_overlay_" + path[: -len(".py")].replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_sizes() -> ModuleType:
    """``SIZES``, their common settings and ``count_parameters`` of the language model."""
    return load("moe/lm/sizes.py")


def kernel_choices() -> ModuleType:
    """``VARIABLE``, ``CHOICES``, ``DEFAULT`` and ``chosen`` of ``DSMOE_KERNELS``."""
    return load("moe/kernels/choices.py")
