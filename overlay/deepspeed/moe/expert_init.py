"""Initial weights of experts: different for each expert, the same for every expert parallel size.

Commit bd3ebd makes its local experts with ``copy.deepcopy``, so that they start out identical and,
when two of them receive the same tokens, stay so. Here every expert is drawn from a random stream
of its own, chosen by a seed of the layer and the expert's *global* number. Which process holds an
expert therefore does not matter, and the default generator moves on by the same amount everywhere,
so the dense weights drawn after it do not depend on the expert parallel size either.
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
    """A seed for the thing called ``name``, independent of the order in which things are made."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def expert_seed(layer_seed: int, global_expert: int) -> int:
    """The seed of one expert; distinct for the experts of a layer, as a hash would not promise."""
    return (layer_seed + global_expert) % _SEEDS


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the body with the default generators at ``seed`` and put them back afterwards.

    ``torch.manual_seed`` is not used: before CUDA has started it would queue this seed for later,
    and so change the stream that the program meant to have there.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def _reset(expert: nn.Module) -> None:
    """Call ``reset_parameters`` of ``expert``, or where it has none, of the modules inside it."""
    own = getattr(expert, "reset_parameters", None)
    if callable(own):
        own()
        return
    for child in expert.children():
        _reset(child)


def initialise_experts(
    experts: Sequence[nn.Module], first_global_expert: int, seed: int | None = None
) -> None:
    """Draw the weights of a layer's local experts anew, each from its own stream.

    Args:
        experts: the local experts, in the order of their global numbers.
        first_global_expert: the global number of ``experts[0]``.
        seed: the layer's seed; by default drawn from the default generator, once for the layer.

    An expert's own ``reset_parameters()`` is called if it has one, else those of its submodules;
    parameters that no such method covers keep their values.
    """
    layer_seed = draw_seed() if seed is None else seed
    for local, expert in enumerate(experts):
        with seeded(expert_seed(layer_seed, first_global_expert + local)), torch.no_grad():
            _reset(expert)
