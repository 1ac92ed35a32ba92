"""Modules of overlay/ that dsmoe uses too, loaded by their path: each fact has one home.

DeepSpeed need not be there. Such a module imports the standard library alone.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType

from dsmoe.common.places import project_root


@functools.lru_cache(maxsize=None)
def load(relative_path: str) -> ModuleType:
    """The module in ``overlay/relative_path``, e.g. ``deepspeed/launcher/host_grammar.py``.

    Each file is run once a process. Raises FileNotFoundError where the project's data is not
    complete.
    """
    path = project_root() / "overlay" / relative_path
    name = "dsmoe_overlay." + relative_path[: -len(".py")].replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, str(path))
    assert spec is not None and spec.loader is not None, f"{relative_path} must end in .py"
    module = importlib.util.module_from_spec(spec)
    # dataclasses looks its class's module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def model_sizes() -> ModuleType:
    """``SIZES``, their common settings and ``count_parameters`` of the language model."""
    return load("deepspeed/moe/lm/sizes.py")


def kernel_choices() -> ModuleType:
    """``VARIABLE``, ``CHOICES``, ``DEFAULT`` and ``chosen`` of ``DSMOE_KERNELS``."""
    return load("deepspeed/moe/kernels/choices.py")
