"""Which classes a checkpoint may name, and an unpickler that refuses all others.

A pickle is a program: it can call whatever it can name. Only what stands here can be named, and
none of it runs code of the file's choosing. It works alike on every version of torch; torch's own
``weights_only`` came with 1.13, and learned to allow further classes with 2.5.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import types
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Any

import torch

_ALLOWED: dict[str, set[str]] = {
    "builtins": {"set", "frozenset", "slice", "range", "complex", "bytearray"}
    | {"bool", "int", "float", "str", "bytes", "list", "dict", "tuple"},
    "_codecs": {"encode"},
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "uuid": {"UUID", "SafeUUID"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "torch": {"Size", "device", "Tensor"},
    "torch.nn.parameter": {"Parameter"},
    "torch._tensor": {"_rebuild_from_type_v2"},  # a tensor with attributes
    "torch.serialization": {"_get_layout"},
    "torch._utils": {
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
        "_rebuild_sparse_tensor",
    },
    "deepspeed.runtime.fp16.loss_scaler": {"LossScaler", "DynamicLossScaler"},
}
#: Names of the same modules in other versions of Python and NumPy.
_SAME = {
    "pathlib._local": "pathlib",
    "numpy._core.multiarray": "numpy.core.multiarray",
}


class PlainUnpickler(pickle.Unpickler):
    """Raises UnpicklingError that names the class, for one that is not allowed."""

    def find_class(self, module: str, name: str) -> Any:
        # pickles of protocol 2, torch's, have Python 2's names
        module, name = NAME_MAPPING.get((module, name), (module, name))
        module = IMPORT_MAPPING.get(module, module)
        found = _SAME.get(module, module)
        if name in _ALLOWED.get(found, ()):
            return getattr(_module(found), name)
        if module in ("torch", "torch.storage") and _is_plain_torch(name):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


_MODULE = types.SimpleNamespace(
    __name__="pickle",
    Unpickler=PlainUnpickler,
    load=lambda file, **options: PlainUnpickler(file, **options).load(),
)
_OPTIONS = (
    {"weights_only": False} if "weights_only" in inspect.signature(torch.load).parameters else {}
)


def read(file: Any, map_location: Any = None) -> Any:
    """``torch.load(file, map_location)`` that raises UnpicklingError for what is not allowed."""
    return torch.load(file, map_location=map_location, pickle_module=_MODULE, **_OPTIONS)


def _module(name: str) -> Any:
    if name == "numpy.core.multiarray":  # NumPy 2 warns of its former name
        try:
            return importlib.import_module("numpy._core.multiarray")
        except ImportError:
            pass
    return importlib.import_module(name)


def _is_plain_torch(name: str) -> bool:
    """Whether torch's ``name`` is a dtype or the class of a storage."""
    return name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
