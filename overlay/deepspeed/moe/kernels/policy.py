"""Which kernel computes what: one object a process, asked by layers and by operators.

Layers ask while torch.compile traces them (``kernels().fuses_gelu(x)``) and operators ask when
they run (``kernels().libraries().hopper``). A test or a plan replaces the whole object
(:func:`use`, :func:`using`) by one of a subclass; no other module is changed for that.

On Hopper the libraries are quack (products with an epilogue of our own) and flash-attn (the
backward pass of attention), where they are installed; on any GPU from Ampere on cuBLASLt; elsewhere
torch. ``DSMOE_KERNELS`` restricts them (choices.py).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import warnings
from types import ModuleType
from typing import Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import choices
from .verify import FirstResults

HAS_OPERATORS = hasattr(getattr(torch, "library", None), "custom_op")  # torch 2.4
_HOPPER = 9  # compute capability; the tiles were chosen there, and other GPUs were not tried


class Libraries(NamedTuple):
    """The libraries that this process may use; each is a module of this folder, or None.

    Attributes:
        hopper: products with GELU inside and without, by quack.
        attention: attention's backward pass, by flash-attn.
        cublaslt: products with GELU inside, by cuBLASLt.
        fp8: FP8 products, by quack (``deepspeed/moe/fp8/hopper.py``).
        copy_engines: whether tokens may be exchanged by copy engines (copy_engines.py).
        notes: one line for each library that a GPU of this kind could use and does not.
    """

    hopper: ModuleType | None = None
    attention: ModuleType | None = None
    cublaslt: ModuleType | None = None
    copy_engines: bool = False
    notes: tuple[str, ...] = ()
    fp8: ModuleType | None = None


class KernelPolicy:
    """Answers which kernel computes what.

    Args:
        libraries: what to use; by default :func:`find_libraries` decides, once, at the first
            question that needs the answer.

    torch.compile traces the questions that take a tensor. It must not trace the search for
    libraries, so :meth:`libraries` is called once before anything is compiled.
    """

    def __init__(self, libraries: Libraries | None = None) -> None:
        self._libraries = libraries
        self._fallbacks: list[str] = []
        self._lock = threading.Lock()
        #: Compares the first results of a library with torch's operations.
        self.first_results = FirstResults()

    def libraries(self) -> Libraries:
        """The libraries of this process.

        Raises:
            ValueError: for a value of ``DSMOE_KERNELS`` that is not one of its choices.
        """
        if self._libraries is None:
            with self._lock:
                if self._libraries is None:
                    self._libraries = find_libraries()
        return self._libraries

    def takes(self, x: Tensor) -> bool:
        """Whether ``x`` goes to operators of our own: 16 bit, on a GPU, being compiled."""
        return (
            HAS_OPERATORS
            and x.is_cuda
            and x.dtype in (torch.float16, torch.bfloat16)
            and torch.compiler.is_compiling()
        )

    def fuses_gelu(self, x: Tensor) -> bool:
        """Whether :func:`.feed_forward.feed_forward` computes a feed-forward layer of ``x``."""
        return self.takes(x) and (
            self.libraries().cublaslt is not None or self.libraries().hopper is not None
        )

    def keeps_slopes(self) -> bool:
        """Whether the products of :mod:`.gelu_product` keep GELU's derivative, not its input."""
        return self.libraries().hopper is not None

    def multiplies(self, x: Tensor) -> bool:
        """Whether :mod:`.linear` has products of its own for ``x``."""
        return self.takes(x) and self.libraries().hopper is not None

    def packs_rows(self, x: Tensor, ffn_size: int) -> bool:
        """Whether :func:`deepspeed.moe.packed.feed_forward.packed_feed_forward` computes experts
        of this width on rows as wide as those of ``x``: kernels take multiples of 16 bytes."""
        return self.multiplies(x) and x.shape[-1] % 8 == 0 and ffn_size % 8 == 0

    def fuses_attention(self, qkv_BS3ND: Tensor) -> bool:
        """Whether :func:`.causal_attention.causal_attention` computes attention."""
        attention = self.libraries().attention if self.takes(qkv_BS3ND) else None
        return attention is not None and attention.supports_heads(qkv_BS3ND)

    def fuses_loss(self, x: Tensor) -> bool:
        """Whether :func:`.output_loss.output_loss` computes output layer and cross-entropy."""
        return self.takes(x)

    def overlaps_exchange(self, x: Tensor, group_name: str | None) -> bool:
        """Whether :func:`.exchanged_experts.exchanged_experts` computes experts and all-to-all."""
        return group_name is not None and self.takes(x) and self.libraries().hopper is not None

    def attend(self, q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, dropout: float) -> Tensor:
        """Causal attention in one kernel, which torch chooses; returns [B, N, S, D]."""
        return F.scaled_dot_product_attention(
            q_BNSD, k_BNSD, v_BNSD, dropout_p=dropout, is_causal=True
        )

    def names(self) -> dict[str, str]:
        """For a record: what computes the products with GELU and attention's gradient."""
        hopper, attention, cublaslt = self.libraries()[:3]
        products = hopper.VERSION if hopper else "cublaslt" if cublaslt else "torch"
        return {"products": products, "attention": attention.VERSION if attention else "torch"}

    def fall_back(self, words: str) -> None:
        """Warn that slower means are used for something, in ``words``; :meth:`notes` repeats it."""
        if words not in self._fallbacks:
            self._fallbacks.append(words)
        warnings.warn(words, stacklevel=3)

    def notes(self) -> tuple[str, ...]:
        """One line for each fallback of this process so far; never searches for libraries."""
        found = self._libraries.notes if self._libraries else ()
        return (*found, *self._fallbacks)


_policy = KernelPolicy()


def kernels() -> KernelPolicy:
    """The policy of this process."""
    return _policy


def use(policy: KernelPolicy | None = None) -> None:
    """Replace the policy of this process; by default by a new one, which searches again."""
    global _policy
    _policy = KernelPolicy() if policy is None else policy


@contextlib.contextmanager
def using(policy: KernelPolicy) -> Iterator[KernelPolicy]:
    """Run the body with ``policy`` as that of the process; the former one comes back."""
    former = kernels()
    use(policy)
    try:
        yield policy
    finally:
        use(former)


def notes() -> tuple[str, ...]:
    """:meth:`KernelPolicy.notes` of this process."""
    return kernels().notes()


def find_ahead() -> threading.Thread:
    """Import the libraries and the compiler in a thread, while the caller does something else.

    Each takes seconds to import. An error here is raised again by the next call of
    :meth:`KernelPolicy.libraries`.
    """
    policy = kernels()

    def work() -> None:
        with contextlib.suppress(Exception):
            policy.libraries()
            importlib.import_module("torch._inductor.compile_fx")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def find_libraries() -> Libraries:
    """The libraries that this machine has and ``DSMOE_KERNELS`` allows.

    Raises:
        ValueError: for a value of ``DSMOE_KERNELS`` that is not one of its choices.
    """
    choice = choices.chosen(os.environ)
    if not torch.cuda.is_available() or choice == "torch":
        return Libraries()
    from . import cublaslt

    problem = cublaslt.problem()
    notes = [f"GELU runs as a separate kernel after the products: {problem}"] if problem else []
    hopper = attention = fp8 = None
    if choice in ("all", "nccl") and not torch.version.hip and _is_hopper():
        try:
            from deepspeed.moe.fp8 import hopper as fp8

            from . import hopper_products as hopper
        except Exception as error:  # any error of the library means that it cannot be used
            notes.append(f"products use cuBLAS: {_reason('quack-kernels', error)}")
        try:
            from . import hopper_attention as attention
        except Exception as error:
            notes.append(f"attention's gradient uses cuDNN: {_reason('flash-attn-4', error)}")
    return Libraries(
        hopper, attention, None if problem else cublaslt, choice == "all", tuple(notes), fp8
    )


def _is_hopper() -> bool:
    return torch.cuda.get_device_capability()[0] == _HOPPER


def _reason(package: str, error: Exception) -> str:
    missing = (getattr(error, "name", None) or "").split(".")[0]
    if missing in ("quack", "flash_attn"):  # not one of their dependencies
        return f"{package} is not installed (it is in dsmoe's extra 'hopper')"
    words = str(error).split("\n")[0]
    return f"{package} cannot be used ({type(error).__name__}: {words})"
