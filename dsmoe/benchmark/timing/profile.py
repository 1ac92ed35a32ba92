"""Where one step of a case spends the GPU's time, by kind of work.

Every process profiles itself (``torchrun`` sets the variables that several need). The case is cut
down to a few micro-batches a step; two steps warm up, one is profiled by torch.profiler. Printed:
a row for each kind of work, one for each of the longest kernels, the time in which nothing ran, and
which kernels it was that the device waited for.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

MICRO_BATCHES = 4
WAIT = "(before) "
COMPILED = "fused elementwise and reductions (compiled)"
KINDS = (
    ("communication", r"nccl"),
    ("cross-entropy", r"^_row$"),  # deepspeed/moe/kernels/cross_entropy.py
    ("attention", r"flash|fmha|attention|sdpa|cudnn"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|xmma|splitK"),
    (COMPILED, r"^triton_"),
    ("copies and fills", r"memcpy|memset|copy|fill|\bcat|CatArray"),
    ("other elementwise", r"elementwise|foreach|multi_tensor"),
    (
        "other reductions, scans, gathers",
        r"reduce|scan|index|gather|scatter|embedding|sort|softmax",
    ),
)


def kind_of(kernel: str) -> str:
    """The kind of work that a kernel's name stands for."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel, re.IGNORECASE if kind != COMPILED else 0):
            return kind
    return "other"


def cut(case: Any) -> Any:
    """``case`` with at most MICRO_BATCHES micro-batches a step, of the same size."""
    count = min(MICRO_BATCHES, case.micro_batches)
    batch = count * case.micro_batch_size * case.parallel.data_parallel_size
    return dataclasses.replace(case, micro_batches=count, global_batch_size=batch)


def profile(case: Any, text: dict[str, Any], cache: Path) -> list[tuple[str, float, int]]:
    """(kernel, microseconds, calls) of one step on this process, :func:`waits`, and "(span)"."""
    import torch
    from deepspeed.moe.kernels.policy import notes
    from torch.profiler import ProfilerActivity, profile

    from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
    from dsmoe.benchmark.data.batches import WindowSampler
    from dsmoe.benchmark.run.folder import CASE, DEEPSPEED, write_json
    from dsmoe.benchmark.train.failure import Stage
    from dsmoe.benchmark.train.start import start
    from dsmoe.benchmark.train.training import one_step, step_tokens

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_json(place / CASE, {"case": case.to_dict(), "cache": str(cache), "text": text})
        write_json(place / DEEPSPEED, deepspeed_config(case, "cuda"))
        run = start(place, Stage())
    model = case.model
    sampler = WindowSampler(
        run.text.train, model.sequence_length, case.global_batch_size, seed=case.seed
    )
    run.engine.train()
    for step in range(3):
        one_step(run, step_tokens(run, sampler, step))
    for words in notes() if run.rank == 0 else ():
        print(f"note: {words}")
    tokens = step_tokens(run, sampler, 3)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        begin.record()
        one_step(run, tokens)
        end.record()
        torch.cuda.synchronize()
    rows = [
        (event.key, float(event.self_device_time_total), int(event.count))
        for event in found.key_averages()
        if event.self_device_time_total > 0
        and str(event.device_type).endswith("CUDA")
        and not event.key.startswith("Optimizer.")  # a region with a name, not a kernel
    ]
    kernels = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in found.events()
        if str(event.device_type).endswith("CUDA") and not event.name.startswith("Optimizer.")
    ]
    return [*rows, *waits(kernels), ("(span)", begin.elapsed_time(end) * 1e3, 1)]


def waits(kernels: list[tuple[float, float, str]]) -> list[tuple[str, float, int]]:
    """Rows like a kernel's, "(before) name", of the time in which nothing ran before each kernel.

    ``kernels``: start and end in microseconds, name; those of several streams may overlap.
    """
    found: dict[str, tuple[float, int]] = {}
    busy_until = None
    for start, end, name in sorted(kernels):
        if busy_until is not None and start > busy_until:
            time, count = found.get(name, (0.0, 0))
            found[name] = (time + start - busy_until, count + 1)
        busy_until = end if busy_until is None else max(busy_until, end)
    return [(f"{WAIT}{name}", time, count) for name, (time, count) in found.items()]


def print_tables(rows: list[tuple[str, float, int]], longest: int = 25) -> None:
    """By kind, then the ``longest`` kernels."""
    from rich.console import Console
    from rich.table import Table

    span = next(time for name, time, _ in rows if name == "(span)")
    kernels = [row for row in rows if not row[0].startswith("(")]
    kinds: dict[str, list[float]] = {}
    for name, time, count in kernels:
        total = kinds.setdefault(kind_of(name), [0.0, 0.0])
        total[0] += time
        total[1] += count
    busy = sum(time for _, time, _ in kernels)
    table = Table(title=f"one step: {span / 1e3:.1f} ms, kernels {busy / 1e3:.1f} ms")
    for column in ("kind of work", "ms", "share", "launches"):
        table.add_column(column, justify="left" if column == "kind of work" else "right")
    for kind, (time, launches) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        table.add_row(kind, f"{time / 1e3:.2f}", f"{time / span:.1%}", f"{launches:.0f}")
    table.add_row("nothing ran", f"{(span - busy) / 1e3:.2f}", f"{1 - busy / span:.1%}", "")
    console = Console(width=150)
    console.print(table)
    gaps = [(n[len(WAIT) :], time, count) for n, time, count in rows if n.startswith(WAIT)]
    for title, listed in (("longest kernels", kernels), ("kernels that were waited for", gaps)):
        table = Table(title=title)
        for column in ("kernel", "ms", "calls"):
            table.add_column(column, justify="left" if column == "kernel" else "right")
        for name, time, count in sorted(listed, key=lambda row: -row[1])[:longest]:
            table.add_row(name[:110], f"{time / 1e3:.2f}", str(count))
        console.print(table)
