"""Where the speed comes from: from the published baseline to the tuned case, a change at a time.

Every rung is a real run of one GPU through the launcher, with its row and record; only the last
rung changes the model's settings (no dropout, larger micro-batches, bf16).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.suites import find_case, for_memory
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.common.kernel_choice import VARIABLE
from dsmoe.common.tables import columns

WORDS = 28  # so that a row has 80 columns


@dataclass(frozen=True)
class Rung:
    """One row: what is new in it, the case, and which kernels may be used (DSMOE_KERNELS)."""

    words: str
    case: Case
    kernels: str = "all"


def three(memory: int | None) -> list[Rung]:
    """The three ends: the baseline as it was published, the same settings by this project's
    means, and free settings. ``memory``: bytes of a GPU."""
    return [
        Rung("published", find_case("published", 1)),
        Rung("artifact", find_case("artifact", 1)),
        Rung("tuned", for_memory(find_case("tuned", 1), memory)),
    ]


def rungs(memory: int | None) -> list[Rung]:
    """All rows, each with the changes of those before it."""
    case = dataclasses.replace(find_case("published", 1), suite="ladder", method="dsmoe")
    artifact = find_case("artifact", 1)
    steps: Sequence[tuple[str, dict[str, Any], str]] = (
        ("index dispatch, balance loss", _moe(artifact), "torch"),
        ("fused attention", {"attention": "fused"}, "torch"),
        ("sharded AdaFactor", {"adafactor_mode": artifact.adafactor_mode}, "torch"),
        ("flat gradients", {"flat_gradients": True}, "torch"),
        ("torch.compile", {"compiled": True}, "torch"),
        ("CUDA graph", {"cuda_graph": True}, "torch"),
        ("GELU in cuBLASLt's products", {}, "cublas"),
        ("kernels for this GPU", {}, "all"),
    )
    found = [Rung("published", find_case("published", 1))]
    for words, changes, kernels in steps:
        case = dataclasses.replace(case, **changes)
        found.append(Rung(words, case, kernels))
    free = for_memory(find_case("tuned", 1), memory)
    words = f"tuned: bf16, micro-batch {free.micro_batch_size}"  # no dropout, no remat
    return [*found, Rung(words, free)]


def _moe(artifact: Case) -> dict[str, Any]:
    names = ("moe_implementation", "second_expert_policy", "aux_loss_coefficient")
    return {name: getattr(artifact, name) for name in names}


@contextlib.contextmanager
def allowed(kernels: str) -> Iterator[None]:
    """Training processes that start inside may use ``kernels``; a choice of the user's stays."""
    if VARIABLE in os.environ:
        yield
        return
    os.environ[VARIABLE] = kernels
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def table(done: Sequence[tuple[str, RunRecord]]) -> list[str]:
    """Seconds of an iteration, how many times as fast as the first row that finished, the memory
    at its peak, and the energy of a token in mJ where the driver counts it."""
    rows = [("", "s", "spread", "n", "tokens/s", "times", "GiB", "mJ")]
    first = next((r.median_seconds for _, r in done if r.median_seconds), None)
    for words, record in done:
        if record.median_seconds is None or first is None:
            rows.append((words[:WORDS], "failed", "", "", "", "", "", ""))
            continue
        rows.append(
            (
                words[:WORDS],
                f"{record.median_seconds:.3f}",
                f"{100 * (record.spread or 0):.1f} %",
                str(len(record.step_seconds)),
                f"{record.tokens_per_second or 0:,.0f}",
                f"{first / record.median_seconds:.2f}",
                f"{(record.peak_memory_bytes or 0) / 2**30:.1f}",
                f"{1000 * record.joules_per_token:.3g}" if record.joules_per_token else "",
            )
        )
    return columns(rows)
