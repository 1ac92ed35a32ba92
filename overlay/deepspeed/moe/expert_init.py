"""Body of experts-differ.patch: initial weights that differ between experts.

Commit bd3ebd makes its local experts with ``copy.deepcopy``: they start identical and stay so as
long as they receive the same tokens. Here every expert has a random stream of its own, seeded by
the layer's seed and the expert's *global* number. The weights therefore do not depend on the
process that holds the expert. The default generator advances by the same amount on every process,
so that the dense weights drawn later do not depend on the expert parallel size either.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Iterator, Sequence

import torch
from torch import nn

_SEEDS = 2**32  # torch's CPU generator (mt19937) uses the low 32 bits of a seed


def draw_seed() -> int:
    """One seed from the default CPU generator; equal on all processes that were seeded equally."""
    return int(torch.randint(_SEEDS, (1,), dtype=torch.int64, device="cpu").item())


def derive_seed(seed: int, name: str) -> int:
    """A seed for the parameter ``name``, independent of the order of construction."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def expert_seed(layer_seed: int, global_expert: int) -> int:
    """The seed of one expert; a sum, since hashes of two experts of a layer could be equal."""
    return (layer_seed + global_expert) % _SEEDS


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the body with the default generators seeded by ``seed``; restore their states afterwards.

    ``torch.manual_seed`` is not used: before CUDA is initialised it stores the seed and applies it
    later, which would change the program's own stream on the GPU.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def _reset(expert: nn.Module) -> None:
    """Call ``reset_parameters`` of ``expert``; if it has none, of the modules inside it."""
    own = getattr(expert, "reset_parameters", None)
    if callable(own):
        own()
        return
    for child in expert.children():
        _reset(child)


def initialise_experts(
    experts: Sequence[nn.Module], first_global_expert: int, seed: int | None = None
) -> None:
    """Draw the weights of a layer's local experts again, each from its own stream.

    Args:
        experts: the local experts, in the order of their global numbers.
        first_global_expert: the global number of ``experts[0]``.
        seed: the layer's seed; by default drawn from the default generator, once for the layer.

    This calls the expert's ``reset_parameters()`` if it has one, else those of its submodules;
    parameters that no such method sets keep their values.
    """
    layer_seed = draw_seed() if seed is None else seed
    for local, expert in enumerate(experts):
        with seeded(expert_seed(layer_seed, first_global_expert + local)), torch.no_grad():
            _reset(expert)
