"""Which libraries' kernels serve this process: found out once, before anything is compiled.

On Hopper those of quack (products with an epilogue of our own) and flash-attn (the backward pass of
attention), where they are installed; on any GPU cuBLASLt's; elsewhere torch's operations.

``DSMOE_KERNELS`` takes fewer: ``nccl`` leaves out the exchange by copy engines (peer_memory.py),
``cublas`` the two packages as well, ``torch`` cuBLASLt too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from . import cublaslt

VARIABLE = "DSMOE_KERNELS"
CHOICES = ("all", "nccl", "cublas", "torch")
_HOPPER = 9  # compute capability; the tiles were chosen there, and other GPUs were not tried


class Kernels(NamedTuple):
    """What serves. ``hopper`` and ``attention`` are modules of this folder; None: not used.

    Attributes:
        hopper: products with GELU inside and without, by quack.
        attention: attention's backward pass, by flash-attn.
        cublaslt: whether cuBLASLt has the products with GELU inside.
        copy_engines: whether tokens may be exchanged by them (where they can: peer_memory.py).
        notes: a line for everything that a GPU of this kind could have and has not.
    """

    hopper: ModuleType | None = None
    attention: ModuleType | None = None
    cublaslt: bool = False
    copy_engines: bool = False
    notes: tuple[str, ...] = ()

    def names(self) -> dict[str, str]:
        """For a record: what computes the products with GELU and attention's gradient."""
        products = self.hopper.VERSION if self.hopper else "cublaslt" if self.cublaslt else "torch"
        return {"products": products, "attention": getattr(self.attention, "VERSION", "torch")}


_found: Kernels | None = None
_left: list[str] = []  # to slower means, since then
_lock = threading.Lock()


def kernels() -> Kernels:
    """The kernels of this process; the first call is not for a compiler to trace.

    Raises:
        ValueError: where ``DSMOE_KERNELS`` is none of its choices.
    """
    global _found
    if _found is None:
        with _lock:
            _found = _found or _find()
    return _found


def find_ahead() -> threading.Thread:
    """Start finding out, beside whatever the caller does next: the packages take seconds to import,
    and so does the compiler that will want them."""

    def work() -> None:
        # a reason not to work is that of the next call of kernels()
        with contextlib.suppress(Exception):
            kernels()
            importlib.import_module("torch._inductor.compile_fx")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def leave(words: str) -> None:
    """Warn that something is left to slower means, in ``words``, which :func:`notes` has then."""
    if words not in _left:
        _left.append(words)
    warnings.warn(words, stacklevel=3)


def notes() -> tuple[str, ...]:
    """A line for each thing that is left to slower means in this process, as far as it has come."""
    return (*(_found.notes if _found else ()), *_left)


def forget() -> None:
    """Find out anew at the next call; for tests."""
    global _found
    _found = None
    _left.clear()


def _find() -> Kernels:
    choice = os.environ.get(VARIABLE) or CHOICES[0]
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE}={choice!r}; expected one of {', '.join(CHOICES)}")
    if not torch.cuda.is_available() or choice == "torch":
        return Kernels()
    problem = cublaslt.problem()
    notes = [f"GELU is a kernel of its own, not part of the products: {problem}"] if problem else []
    hopper = attention = None
    if choice in ("all", "nccl") and not torch.version.hip and _is_hopper():
        try:
            from . import hopper_products as hopper
        except Exception as error:  # a library that cannot be used, for whatever reason
            notes.append(f"products are cuBLAS's: {_reason('quack-kernels', error)}")
        try:
            from . import hopper_attention as attention
        except Exception as error:
            notes.append(f"attention's gradient is cuDNN's: {_reason('flash-attn-4', error)}")
    return Kernels(hopper, attention, problem is None, choice == "all", tuple(notes))


def _is_hopper() -> bool:
    return torch.cuda.get_device_capability()[0] == _HOPPER


def _reason(package: str, error: Exception) -> str:
    missing = (getattr(error, "name", None) or "").split(".")[0]
    if missing in ("quack", "flash_attn"):  # and not something that they need
        return f"{package} is not installed (requirements-hopper.txt has it)"
    words = str(error).split("\n")[0]
    return f"{package} cannot be used ({type(error).__name__}: {words})"
