"""What the AdaFactor tests share: the package under test, and the oracle.

The oracle is torch_optimizer 0.3.0's Adafactor, one separate parameter for each matrix or vector.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, Sequence

import torch
import torch_optimizer
from torch import Tensor

from support import ROOT

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # torch 1.10: nothing is watched there, and tests/oldest.txt says so
    TorchDispatchMode = contextlib.nullcontext

OVERLAY = ROOT / "overlay" / "deepspeed"


def read_data(path: Path) -> Any:
    """A file of tensors and plain containers; as data where torch can (not before 1.13)."""
    if "weights_only" not in inspect.signature(torch.load).parameters:
        return torch.load(path)
    return torch.load(path, weights_only=True)


def load_package() -> ModuleType:
    """AdaFactor of the patched checkout where one is importable, else of overlay/.

    Loaded by path under a name of its own: it needs nothing of DeepSpeed but the overlay's module
    ``deepspeed.utils.neutral``, and importing DeepSpeed is slow.
    """
    name = "deepspeed_adafactor"
    if name not in sys.modules:
        found = importlib.util.find_spec("deepspeed")
        places = list(found.submodule_search_locations or []) if found else []
        roots = [root for root in map(Path, [*places, OVERLAY]) if _has_adafactor(root)]
        folder = roots[0] / "ops" / "adafactor"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with _packages_at(roots[0]):
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
    return sys.modules[name]


def _has_adafactor(root: Path) -> bool:
    return (root / "ops" / "adafactor").is_dir()


@contextlib.contextmanager
def _packages_at(root: Path) -> Iterator[None]:
    """Inside, ``deepspeed.utils.X`` is root/utils/X.py, without deepspeed's own __init__."""
    before = dict(sys.modules)
    for name, folder in (("deepspeed", root), ("deepspeed.utils", root / "utils")):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "deepspeed" and n not in before]:
            del sys.modules[name]


class Oracle:
    """torch_optimizer on every unit of every parameter by itself.

    ``batch_dims`` says how many leading dimensions of each parameter are looped over.
    """

    def __init__(self, params: Sequence[Tensor], batch_dims: Sequence[int], **options: Any):
        self.params = [param.detach().clone() for param in params]
        self.batch_dims = batch_dims
        self.units = [
            [torch.nn.Parameter(unit.clone()) for unit in _units(param, dims)]
            for param, dims in zip(self.params, batch_dims)
        ]
        every = [unit for units in self.units for unit in units]
        self.optimizer = torch_optimizer.Adafactor(every, **options)

    def step(self, grads: Sequence[Tensor]) -> None:
        for units, grad, dims in zip(self.units, grads, self.batch_dims):
            for unit, unit_grad in zip(units, _units(grad, dims)):
                unit.grad = unit_grad.clone()
        self.optimizer.step()

    def values(self) -> list[Tensor]:
        return [
            torch.stack([unit.detach() for unit in units]).view(param.shape)
            for units, param in zip(self.units, self.params)
        ]


def _units(tensor: Tensor, dims: int) -> list[Tensor]:
    return list(tensor.reshape(-1, *tensor.shape[dims:]))


def random_tensors(shapes: Sequence[Sequence[int]], seed: int, scale: float) -> list[Tensor]:
    """float64 normal tensors; equal on every process and at any number of them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * scale
        for shape in shapes
    ]


def gradients(shapes: Sequence[Sequence[int]], step: int) -> list[Tensor]:
    """Gradients of one step; their scale differs by step, so that clipping comes and goes.

    Some are zero: a row of the first matrix that has two, as for a token that never occurs.
    """
    found = random_tensors(shapes, 1000 + step, 10.0 ** ((step * 7) % 5 - 2))
    for grad in found:
        if grad.dim() == 2 and grad.shape[0] > 1:
            grad[step % grad.shape[0]] = 0.0
            break
    return found


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest expected value of its tensor (at least 1)."""
    errors = []
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        errors.append(float((a - b).abs().max() / b.abs().max().clamp(min=1.0)))
    return max(errors)


#: Operations that make the host wait for the device, and those that only make a view.
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"}
VIEWS = {"view", "_unsafe_view", "slice", "select", "split", "split_with_sizes", "unsqueeze"}
VIEWS |= {"squeeze", "transpose", "t", "alias", "detach", "as_strided", "expand", "_reshape_alias"}


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that waits for the device; counts those that launch work."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise AssertionError(f"{name} waits for the device")
        self.launches += name not in VIEWS and not name.startswith("_record_function")
        return func(*args, **(kwargs or {}))
