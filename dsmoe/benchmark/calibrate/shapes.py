"""What is measured: the sizes of the models, fewer and smaller ones on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Shapes:
    """Sizes for one kind of device.

    ``widths``: hidden sizes H, the most used first; ``tokens`` of a micro-batch; ``batches``:
    sequences for attention of ``length`` positions; ``vocabulary`` V; ``factor``: feed-forward
    width over H; ``copies``: bytes; ``messages``: bytes a process hands to a collective;
    ``parameters``: elements of an optimizer pass.
    """

    dtypes: tuple[str, ...]
    widths: tuple[int, ...]
    heads: int
    tokens: tuple[int, ...]
    batches: tuple[int, ...]
    length: int
    vocabulary: int
    factor: int
    experts: tuple[int, ...]
    copies: tuple[int, ...]
    messages: tuple[int, ...]
    parameters: tuple[int, ...]


GPU = Shapes(
    dtypes=("bfloat16", "float16"),
    widths=(768, 1024, 1536, 2048),
    heads=16,
    tokens=(65536, 8192, 32768),
    batches=(64, 8),
    length=1024,
    vocabulary=32000,
    factor=8,
    experts=(8, 16, 32),
    copies=(MIB, 16 * MIB, 256 * MIB, 1024 * MIB),
    messages=(MIB // 16, MIB, 8 * MIB, 64 * MIB, 256 * MIB),
    parameters=(10**6, 10**7, 10**8),
)
CPU = Shapes(
    dtypes=("float32",),
    widths=(64, 128),
    heads=4,
    tokens=(512, 256, 2048),
    batches=(4, 2),
    length=128,
    vocabulary=320,
    factor=8,
    experts=(4,),
    copies=(MIB // 16, MIB, 16 * MIB),
    messages=(MIB // 64, MIB // 16, MIB // 2, 4 * MIB),
    parameters=(10**4, 10**5, 10**6),
)
