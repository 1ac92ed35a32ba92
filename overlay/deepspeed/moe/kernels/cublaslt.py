"""Matrix products with a GELU in their epilogue, by cuBLASLt's C interface.

torch has no call for them: it computes GELU in another kernel, which reads the product's result
again. The library is the one that torch itself has loaded; nothing is compiled.

cuBLAS is column-major: a row-major [R, M] tensor is an M by R matrix to it. A product of row-major
tensors is therefore requested with exchanged operands: out^T = weight^T x^T.

Source: NVIDIA, cuBLAS documentation, "Using the cuBLASLt API"; the numbers are its enumerations.

Shape suffixes: E products in a batch, R rows, K width of the sum, N width of the result.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Iterator, NamedTuple

import torch
from torch import Tensor

GELU_AUX_BIAS = 32 | 128 | 4
"""out = gelu(x w + bias); the input of GELU goes to ``aux``."""
DGELU = 64 | 128
"""out = (x w) * gelu'(aux)."""

_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_FP32, _COMPUTE_FP32 = 0, 68
_TRANSPOSE_A, _EPILOGUE, _BIAS, _BIAS_STRIDE = 3, 7, 8, 10
_AUX, _AUX_LEADING, _AUX_STRIDE, _BIAS_TYPE = 11, 12, 13, 26
_BATCH_COUNT, _BATCH_STRIDE = 5, 6
_MAX_WORKSPACE = 1
_WORKSPACE = 32 * 2**20  # bytes, as NVIDIA recommends for Hopper
_CANDIDATES = 4
_TRIALS = 3


class LtError(RuntimeError):
    """A call of cuBLASLt failed; the message has the call and its status."""


class Product(NamedTuple):
    """The kind of a product, which determines its kernel.

    ``x`` is [E, R, K], the weight [E, K, N] or, if ``transposed``, [E, N, K]; the result [E, R, N].
    """

    epilogue: int
    batch: int
    rows: int
    inner: int
    outer: int
    transposed: bool
    dtype: torch.dtype


class _Heuristic(ctypes.Structure):
    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    """The library.

    Raises:
        OSError: if it cannot be loaded.
    """
    major = (torch.version.cuda or "none").split(".")[0]
    return ctypes.CDLL(f"libcublasLt.so.{major}")


@functools.lru_cache(maxsize=None)
def problem() -> str | None:
    """Why these products cannot be used here; None where they can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip:
        return "torch is built for ROCm"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    try:
        _library()
    except OSError as error:
        return f"cuBLASLt cannot be loaded ({error})"
    return None


def supports_operands(x: Tensor, *others: Tensor) -> bool:
    """Whether :func:`product` takes these: 16 bit, contiguous, addresses of 16 bytes."""
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and all(
            t.dtype == x.dtype and t.data_ptr() % 16 == 0 and t.is_contiguous()
            for t in (x, *others)
        )
    )


def product(
    kind: Product, x: Tensor, weight: Tensor, out: Tensor, aux: Tensor, bias: Tensor | None
) -> bool:
    """Write ``out`` (and, by ``GELU_AUX_BIAS``, ``aux``) on the current stream.

    The first call of a kind times the library's candidates, as one batch and product by product,
    and keeps the fastest; while a CUDA graph is recorded, its first candidate is taken.

    Returns:
        False where the library has no kernel for this kind; nothing is written then.
    """
    key = (kind, x.device.index)
    if key in _CHOSEN:
        call = _CHOSEN[key]
    elif torch.cuda.is_current_stream_capturing():
        call = next(_candidates(kind, x.device.index), None)
    else:
        call = _CHOSEN[key] = _fastest(kind, x, weight, out, aux, bias)
    if call is not None:
        call(x, weight, out, aux, bias)
    return call is not None


def _fastest(kind: Product, *operands: Tensor | None) -> _Call | None:
    best, shortest = None, float("inf")
    for call in _candidates(kind, operands[0].device.index):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        try:
            call(*operands)
            begin.record()
            for _ in range(_TRIALS):
                call(*operands)
            end.record()
        except LtError:
            continue
        end.synchronize()
        if begin.elapsed_time(end) < shortest:
            best, shortest = call, begin.elapsed_time(end)
    return best


def _candidates(kind: Product, device: int | None) -> Iterator[_Call]:
    for batch in sorted({kind.batch, 1}, reverse=True):
        try:
            plan = _Plan(kind, batch, device)
        except LtError:
            continue
        for algorithm in plan.algorithms:
            yield _Call(kind, plan, algorithm, kind.batch // batch)


class _Call:
    """One way to do a product: by one of the library's algorithms, in ``parts`` calls."""

    def __init__(self, kind: Product, plan: _Plan, algorithm: Any, parts: int) -> None:
        self.plan, self.algorithm, self.parts = plan, algorithm, parts

    def __call__(
        self, x: Tensor, weight: Tensor, out: Tensor, aux: Tensor, bias: Tensor | None
    ) -> None:
        places = [_places(operand, self.parts) for operand in (weight, x, out, aux, bias)]
        for addresses in zip(*places):
            self.plan.run(self.algorithm, *addresses)


class _Plan:
    """Descriptors of ``batch`` products of a kind, and the library's algorithms for them."""

    def __init__(self, kind: Product, batch: int, device: int | None) -> None:
        self.library = _library()
        self.handle, self.space = _context(device)
        rows, inner, outer = kind.rows, kind.inner, kind.outer
        self.has_bias = bool(kind.epilogue & 4)
        self.description = ctypes.c_void_p()
        self._call("MatmulDescCreate", ctypes.byref(self.description), _COMPUTE_FP32, _FP32)
        self._describe(_TRANSPOSE_A, ctypes.c_int32(int(kind.transposed)))
        self._describe(_EPILOGUE, ctypes.c_int32(kind.epilogue))
        self._describe(_AUX_LEADING, ctypes.c_int64(outer))
        self._describe(_AUX_STRIDE, ctypes.c_int64(rows * outer if batch > 1 else 0))
        self._describe(_AUX, ctypes.c_void_p(self.space.data_ptr()))
        if self.has_bias:
            self._describe(_BIAS_TYPE, ctypes.c_int32(_TYPES[kind.dtype]))
            self._describe(_BIAS_STRIDE, ctypes.c_int64(outer if batch > 1 else 0))
            self._describe(_BIAS, ctypes.c_void_p(self.space.data_ptr()))
        weight = (inner, outer) if kind.transposed else (outer, inner)
        self.weight = self._layout(kind, batch, *weight)
        self.x = self._layout(kind, batch, inner, rows)
        self.out = self._layout(kind, batch, outer, rows)
        self.one, self.zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self.algorithms = self._search()

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, f"cublasLt{name}")(*arguments)
        if status:
            raise LtError(f"cublasLt{name} gave status {status}")

    def _set(self, name: str, target: Any, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call(name, target, attribute, ctypes.byref(value), size)

    def _describe(self, attribute: int, value: Any) -> None:
        self._set("MatmulDescSetAttribute", self.description, attribute, value)

    def _layout(self, kind: Product, batch: int, rows: int, columns: int) -> ctypes.c_void_p:
        layout = ctypes.c_void_p()
        sizes = (ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))
        self._call("MatrixLayoutCreate", ctypes.byref(layout), _TYPES[kind.dtype], *sizes)
        self._set("MatrixLayoutSetAttribute", layout, _BATCH_COUNT, ctypes.c_int32(batch))
        stride = ctypes.c_int64(rows * columns)
        self._set("MatrixLayoutSetAttribute", layout, _BATCH_STRIDE, stride)
        return layout

    def _search(self) -> list[Any]:
        preference = ctypes.c_void_p()
        self._call("MatmulPreferenceCreate", ctypes.byref(preference))
        limit = ctypes.c_size_t(self.space.numel())
        self._set("MatmulPreferenceSetAttribute", preference, _MAX_WORKSPACE, limit)
        found, count = (_Heuristic * _CANDIDATES)(), ctypes.c_int(0)
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle,
            self.description,
            self.weight,
            self.x,
            self.out,
            self.out,
            preference,
            _CANDIDATES,
            found,
            ctypes.byref(count),
        )
        self._call("MatmulPreferenceDestroy", preference)
        return [] if status else [found[i].algorithm for i in range(count.value)]

    def run(self, algorithm: Any, weight: int, x: int, out: int, aux: int, bias: int) -> None:
        """Compute the products; the arguments are the addresses of the tensors."""
        self._describe(_AUX, ctypes.c_void_p(aux))
        if self.has_bias:
            self._describe(_BIAS, ctypes.c_void_p(bias))
        self._call(
            "Matmul",
            self.handle,
            self.description,
            ctypes.byref(self.one),
            ctypes.c_void_p(weight),
            self.weight,
            ctypes.c_void_p(x),
            self.x,
            ctypes.byref(self.zero),
            ctypes.c_void_p(out),
            self.out,
            ctypes.c_void_p(out),
            self.out,
            algorithm,
            ctypes.c_void_p(self.space.data_ptr()),
            ctypes.c_size_t(self.space.numel()),
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )


@functools.lru_cache(maxsize=None)
def _context(device: int | None) -> tuple[ctypes.c_void_p, Tensor]:
    """Handle and workspace of the library for a device."""
    handle = ctypes.c_void_p()
    status = _library().cublasLtCreate(ctypes.byref(handle))
    if status:
        raise LtError(f"cublasLtCreate gave status {status}")
    return handle, torch.empty(_WORKSPACE, dtype=torch.uint8, device=torch.device("cuda", device))


def _places(operand: Tensor | None, parts: int) -> list[int]:
    """Addresses of the equal parts of a contiguous tensor."""
    if operand is None:
        return [0] * parts
    size = operand.numel() // parts * operand.element_size()
    return [operand.data_ptr() + i * size for i in range(parts)]


_CHOSEN: dict[tuple[Product, int | None], _Call | None] = {}
