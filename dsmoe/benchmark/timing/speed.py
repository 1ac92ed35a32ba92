"""The fast path against the reference path, step by step in turn, as a ratio.

Reference: dispatch by products over [G, S, E, C], attention written out, DeepSpeed's own ZeRO,
eager. Fast: dispatch by index, fused attention, flat gradients; on a GPU also torch.compile and
CUDA graphs. Both start from the same weights and train on the same random tokens through the real
engine (ZeRO-2, AdaFactor), in one process. Their steps alternate, so that a busy machine is busy
for both.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.suites import FAST, SUITES

STEPS = 7
REFERENCE: dict[str, Any] = {
    "moe_implementation": "einsum",
    "compiled": False,
    "flat_gradients": False,
    "cuda_graph": False,
}


@dataclass(frozen=True)
class Ratio:
    """Median seconds of a step on either path."""

    name: str
    tokens_in_group: int
    fast: float
    reference: float

    @property
    def ratio(self) -> float:
        """How many times as fast the fast path is."""
        return self.reference / self.fast


def sizes(device: str) -> dict[str, Case]:
    """The cases to time: the smoke size, and the same with 4096 tokens in a routing group."""
    smoke = SUITES["smoke"][0]
    if device == "cuda":
        smoke = replace(smoke, precision="bf16", **FAST)
    wide = replace(smoke, global_batch_size=32, micro_batches=1)
    return {"smoke size": smoke, "4096 tokens a group": wide}


def measure(name: str, case: Case, steps: int) -> Ratio:
    """Time ``steps`` steps of either path after two of warm-up."""
    import torch

    shape = (case.micro_batches, case.micro_batch_size, case.model.sequence_length + 1)
    tokens = torch.randint(case.model.vocab_size, shape)
    fast = _Trainer(case, tokens)
    reference = _Trainer(replace(case, **REFERENCE), tokens, attention="math")
    seconds: dict[int, list[float]] = {id(fast): [], id(reference): []}
    for step in range(steps + 2):
        for path in (fast, reference):
            begin = time.perf_counter()
            path.step(step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step >= 2:
                seconds[id(path)].append(time.perf_counter() - begin)
    group = case.micro_batch_size * case.model.sequence_length
    return Ratio(name, group, *(statistics.median(s) for s in seconds.values()))


class _Trainer:
    """The model of a case in an engine of its own, and random tokens to train on."""

    def __init__(self, case: Case, tokens: Any, attention: str = "fused") -> None:
        import dataclasses

        import deepspeed
        import torch
        from deepspeed.moe.lm import MoELM, param_groups

        from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
        from dsmoe.benchmark.train.start import compile_training, micro_batch_of, model_config

        self.case = case
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = dataclasses.replace(model_config(case), attention=attention)
        model = MoELM(config, seed=case.seed)
        if case.compiled:
            compile_training(model)
        self.engine, *_ = deepspeed.initialize(  # type: ignore[attr-defined]
            model=model,
            model_parameters=param_groups(model),
            config=deepspeed_config(case, device),
        )
        self.micro_batch = micro_batch_of(self.engine, case)
        self.tokens = tokens.to(device)

    def step(self, number: int) -> None:
        for tokens in self.tokens:
            self.micro_batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            self.engine.step()


def run(steps: int) -> list[Ratio]:
    """All sizes, in this process."""
    import logging

    import torch

    from dsmoe.benchmark.launchers.deepspeed_runner import free_port
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.common.places import checkout_folder

    place = checkout_folder()
    patched_deepspeed.ensure(place)
    sys.path.insert(0, str(place))
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({**alone, "MASTER_PORT": str(free_port())})
    logging.disable(logging.INFO)
    import deepspeed
    from deepspeed.moe.kernels.policy import notes
    from deepspeed.utils import groups  # type: ignore[attr-defined]
    from deepspeed.utils.neutral import backend

    deepspeed.init_distributed(dist_backend=backend(), verbose=False)  # type: ignore[attr-defined]
    groups.initialize(ep_size=1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name, case in sizes(device).items():
        print(f"== {name}: {case.micro_batches} x {case.micro_batch_size} sequences", flush=True)
        found.append(measure(name, case, steps))
    for words in notes():
        print(f"note: {words}")
    return found


def print_ratios(found: list[Ratio], steps: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"seconds of a step, median of {steps}")
    for column in ("size", "tokens a group", "reference", "fast", "times as fast"):
        table.add_column(column, justify="left" if column == "size" else "right")
    for row in found:
        figures = (f"{row.reference:.4f}", f"{row.fast:.4f}", f"{row.ratio:.2f}")
        table.add_row(row.name, str(row.tokens_in_group), *figures)
    Console().print(table)


def _settings(case: dict[str, Any]) -> dict[str, Any]:
    """What tells the runs of a case apart, by its name in a row; a field may be missing."""
    names = ("method", "precision", "moe_implementation", "optimizer", "remat", "compiled")
    parallel = {name: case["parallel"].get(name) for name in ("expert_parallel_size", "zero_stage")}
    found = {**parallel, **{name: case.get(name) for name in (*names, "flat_gradients", "reduce")}}
    return {name.replace("_", " "): value for name, value in found.items()}


def print_table(folder: Path) -> None:
    """The records of a results folder, one row each, as Markdown; then what they ran
    on: GPU, versions, and what a record says of kernels."""
    from dsmoe.benchmark.results.store import RECORDS, some_records

    records = some_records(folder / RECORDS)
    print(
        "| case | n | s, median | spread | tokens/s | useful TFLOPS a GPU | J a token | peak GiB "
        "| first step |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    ran_on: dict[str, None] = {}  # in the order of the rows
    settings = [_settings(record.case) for record in records]
    other = [name for name in settings[0] if len({repr(one.get(name)) for one in settings}) > 1]
    for record, own in zip(records, settings):
        case: dict[str, Any] = record.case
        processes, count = case["parallel"]["processes"], case["micro_batches"]
        size = case["global_batch_size"] // (processes * count)
        unit = "GPU" if record.device == "cuda" else "process"
        words = f"{case['suite']} {case['model']['name']}, {processes} {unit}, {count} x {size}"
        words += "".join(f", {name} {own[name]}" for name in other)
        if record.status != "ok" or record.median_seconds is None:
            print(f"| {words} | | {record.reason} | | | | | | |")
            continue
        hardware = record.hardware.get("device_name", record.instance)
        words_of = {"on": hardware, **record.versions, **record.kernels}
        ran_on[", ".join(f"{name} {value}" for name, value in words_of.items())] = None
        peak = (record.peak_memory_bytes or 0) / 2**30
        first, joules = record.first_step_seconds, record.joules_per_token
        print(
            f"| {words} | {len(record.step_seconds)} | {record.median_seconds:.3f} "
            f"| {record.spread:.1%} | {record.tokens_per_second:,.0f} "
            f"| {record.tflops['useful']:.3g} | {f'{joules:.3g}' if joules else ''} | {peak:.1f} "
            f"| {f'{first:.0f} s' if first else ''} |"
        )
    print("\n".join(["", *ran_on]))
