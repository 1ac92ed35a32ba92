"""``torch`` for the files of DeepSpeed that say ``torch.cuda`` throughout.

With a CUDA device, ``torch`` here is torch itself. Without one it is a view of torch in which
``torch.cuda`` is a small replacement for the CPU: streams and events do nothing (the CPU runs in
order), memory statistics are 0, ``current_device()`` is the CPU. A file becomes device-neutral by
importing ``torch`` from here: the patch is one line a file, and the user's own ``torch`` does not
change.
"""

from __future__ import annotations

import contextlib
import functools
import types
from typing import Any

import torch as _torch


class _Stream:
    """A stream on the CPU, which has only one: every wait returns at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: _Stream) -> None:
        pass

    def wait_event(self, event: _Event) -> None:
        pass


class _Event(_Stream):
    """A point in a stream; on the CPU it is reached as soon as it is recorded."""

    def record(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True


class _CpuAsCuda(types.ModuleType):
    """The part of ``torch.cuda`` that DeepSpeed's training path uses, on the CPU."""

    Stream = _Stream
    Event = _Event
    HalfTensor = _torch.HalfTensor
    BFloat16Tensor = _torch.BFloat16Tensor
    FloatTensor = _torch.FloatTensor
    DoubleTensor = _torch.DoubleTensor
    ByteTensor = _torch.ByteTensor

    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 0

    @staticmethod
    def current_device() -> _torch.device:
        return _torch.device("cpu")

    @staticmethod
    def set_device(device: Any) -> None:
        pass

    @staticmethod
    def synchronize(device: Any = None) -> None:
        pass

    @staticmethod
    def current_stream(device: Any = None) -> _Stream:
        return _Stream()

    default_stream = current_stream

    @staticmethod
    def stream(stream: Any) -> Any:
        return contextlib.nullcontext()

    @staticmethod
    def memory_allocated(device: Any = None) -> int:
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated
    memory_cached = max_memory_cached = memory_allocated

    @staticmethod
    def reset_peak_memory_stats(device: Any = None) -> None:
        pass

    reset_max_memory_cached = reset_max_memory_allocated = reset_peak_memory_stats


class _TorchOnCpu(types.ModuleType):
    """torch itself, except for its member ``cuda``."""

    cuda = _CpuAsCuda("torch.cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(_torch, name)


torch: Any = _torch if _torch.cuda.is_available() else _TorchOnCpu("torch")


def local_types(types_of_tensors: list[str]) -> list[str]:
    """The names in ``types_of_tensors`` for tensors of this machine's device.

    DeepSpeed sorts gradients by ``tensor.type()`` and a list of ``torch.cuda.*Tensor`` names; it
    never reduces a gradient whose type is not in the list. Other names are returned unchanged.
    """
    if _torch.cuda.is_available():
        return types_of_tensors
    return [name.replace("torch.cuda.", "torch.") for name in types_of_tensors]


def backend() -> str:
    """The torch.distributed backend for this machine's device: ``nccl`` or ``gloo``."""
    return "nccl" if _torch.cuda.is_available() else "gloo"


@functools.lru_cache(maxsize=None)
def has_triton() -> bool:
    """Whether Triton, in which some kernels for GPUs are written, can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
