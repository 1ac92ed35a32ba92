"""Compile the Hopper kernels of a training pass while the training process imports and builds.

quack and flash-attn compile a kernel where it is first needed, in two to five seconds, one after
the other, and keep it on disk. Their kernels do not depend on how many rows there are, so they can
be compiled before there is a model. :func:`start` starts this file as a program, which imports the
libraries without a GPU, forks a process for each kernel and ends in some ten seconds. A training
process that needs a kernel before it is there waits for quack's lock on it, or compiles it itself.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable

LIBRARIES = ("quack-kernels", "flash-attn-4", "nvidia-cutlass-dsl")
# What the kernels are made from, so a change of it is compiled anew.
SOURCES = ("ahead.py", "hopper_products.py", "hopper_attention.py", "../fp8/hopper.py")
FEWEST_CORES = 8  # with fewer, the training process needs them itself
CAPABILITY = "9.0"
# Set before anything is imported: the libraries compile for this GPU without seeing one. With a GPU
# in sight, tensors that have no storage would make a context on it, which a fork cannot do.
BLIND = {
    "CUDA_VISIBLE_DEVICES": "",
    "QUACK_ARCH": "90",
    "CUTE_DSL_ARCH": "sm_90a",
    "FLASH_ATTENTION_ARCH": "sm_90",
}
HERE = Path(__file__).resolve().parent


def start(precision: str, head_size: int, packed: bool) -> subprocess.Popen | None:
    """Start compiling; None where it was done before, or where there is nothing to do it with.

    Args:
        precision: fp16, bf16 or fp8.
        head_size: of attention, a multiple of 16; else flash-attn has no kernel.
        packed: whether experts compute packed rows (deepspeed/moe/packed).
    """
    words = ["--precision", precision, "--head-size", str(head_size)]
    words += ["--packed"] if packed else []
    done = _done(words)
    if done is None or done.exists() or (os.cpu_count() or 1) < FEWEST_CORES:
        return None
    if not shutil.which("nvidia-smi"):
        return None
    command = [sys.executable, "-m", "deepspeed.moe.kernels.ahead", *words]
    quiet = subprocess.DEVNULL
    environment = {**os.environ, **BLIND}
    return subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)


def _done(words: list[str]) -> Path | None:
    """The file in quack's cache that says that these kernels are there; None without libraries."""
    try:
        versions = [version(name) for name in LIBRARIES]
    except PackageNotFoundError:
        return None
    found = hashlib.sha256(" ".join([sys.version, *versions, *words]).encode())
    for name in SOURCES:
        found.update((HERE / name).read_bytes())
    cache = os.environ.get("QUACK_CACHE_DIR")
    try:
        folder = (
            Path(cache) if cache else Path(tempfile.gettempdir(), getpass.getuser(), "quack_cache")
        )
    except (KeyError, OSError):  # a user that only a number names
        return None
    return folder / f"ahead-{found.hexdigest()[:32]}"


def products(dtype: Any, packed: bool) -> dict[str, Callable[[], Any]]:
    """Calls that compile the products in 16 bit, by name; they fail after that, without a GPU."""
    import torch

    from . import hopper_products as hopper

    rows, width, hidden = 256, 64, 256
    first = torch.zeros(3, dtype=torch.int32)

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    # a dense layer's weights are read transposed, as nn.Linear has them
    into, outof = new(1, hidden, width).transpose(1, 2), new(1, width, hidden).transpose(1, 2)
    w1, w2 = new(2, width, hidden), new(2, hidden, width)
    x, h, b = new(1, rows, width), new(1, rows, hidden), new(1, hidden)
    both = {
        "gelu": lambda: hopper.gelu(x, into, b, h, new(1, rows, hidden)),
        "times_slope": lambda: hopper.times_slope(
            x, outof.transpose(1, 2), h, new(1, rows, hidden)
        ),
        "product, biased": lambda: hopper.product(x, into, b, h),
        "product": lambda: hopper.product(h, into.transpose(1, 2), None, x),
        "product, transposed": lambda: hopper.product(x, into, None, h),  # the output layer's
    }
    x_R, h_R, b_E = new(rows, width), new(rows, hidden), new(2, hidden)
    if not packed:  # padded rows of experts: their weights are not transposed
        return {
            **both,
            "experts: gelu": lambda: hopper.gelu(
                new(2, rows, width), w1, b_E, new(2, rows, hidden), new(2, rows, hidden)
            ),
            "experts: times_slope": lambda: hopper.times_slope(
                new(2, rows, width), w2.mT, new(2, rows, hidden), new(2, rows, hidden)
            ),
        }
    return {
        **both,
        "packed: gelu": lambda: hopper.gelu(x_R, w1, b_E, h_R, new(rows, hidden), first),
        "packed: times_slope": lambda: hopper.times_slope_packed(
            x_R, w2.mT, h_R, new(rows, hidden), first
        ),
        "packed: product, biased": lambda: hopper.product(h_R, w2, new(2, width), x_R, first),
        "packed: product": lambda: hopper.product(h_R, w1.mT, None, x_R, first),
        "packed: weight gradient": lambda: hopper.weight_gradient_packed(x_R, h_R, w1, first),
    }


def small_products() -> dict[str, Callable[[], Any]]:
    """The same of the products in FP8."""
    import torch
    from deepspeed.moe.fp8 import hopper
    from deepspeed.moe.fp8.quantise import FORMAT
    from quack.epilogue.ops import Scalar

    Scalar._validate_pointer_value = lambda *_: None  # which asks for a tensor on a GPU
    rows, width, hidden = 256, 64, 256
    x, w = (torch.empty(1, n, width, dtype=torch.bfloat16).to(FORMAT) for n in (rows, hidden))
    slope = torch.empty(1, rows, hidden, dtype=torch.bfloat16)
    bias, one = slope[:, 0], torch.ones(())
    return {
        "fp8: up": lambda: hopper.up(x, w, bias, one, one),
        "fp8: down": lambda: hopper.down(x, w, slope, one, one),
        "fp8: product": lambda: hopper.product(x, w, one),
    }


def attention(dtype: Any, head_size: int) -> dict[str, Callable[[], Any]]:
    """The call that compiles attention's three kernels, for tensors that have no storage."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from . import hopper_attention

    def backward() -> None:
        with FakeTensorMode():
            qkv = torch.empty(1, 1024, 3, 2, head_size, dtype=dtype, device="cuda")
            dy, y = (torch.empty(1, 1024, 2, head_size, dtype=dtype, device="cuda") for _ in "ab")
            lse = torch.empty(1, 2, 1024, device="cuda")
            hopper_attention.backward(dy, qkv, y, lse)

    return {"attention": backward}


def calls(precision: str, head_size: int, packed: bool) -> dict[str, Callable[[], Any]]:
    """What :func:`start` is asked for."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    found = products(dtype, packed)
    if precision == "fp8":  # whose output layer is in 16 bit
        found = {name: call for name, call in found.items() if name.startswith("product")}
        found.update(small_products())
    if head_size % 16 == 0 and head_size <= 128:
        found.update(attention(dtype, head_size))
    return found


def compile_all(found: dict[str, Callable[[], Any]]) -> None:
    """Each call in a process of its own, at most as many at once as there are cores but two."""
    running = 0
    for call in found.values():
        if running >= max(2, (os.cpu_count() or 1) - 2):
            os.wait()
            running -= 1
        if os.fork() == 0:
            # it cannot run the kernel that it has compiled
            with contextlib.suppress(BaseException):
                call()
            os._exit(0)
        running += 1
    for _ in range(running):
        os.wait()


def capability() -> str | None:
    """The first GPU's, without a context on it."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
        return next(iter(done.stdout.split()), None)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--precision", required=True)
    parser.add_argument("--head-size", type=int, required=True)
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    if capability() != CAPABILITY:
        return
    compile_all(calls(options.precision, options.head_size, options.packed))
    done = _done(sys.argv[1:])
    if done is not None:
        with contextlib.suppress(OSError):
            done.touch()


if __name__ == "__main__":
    main()
