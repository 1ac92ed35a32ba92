"""The fast path against the reference path, step by step in turn, as a ratio.

Reference: dispatch by products over [G, S, E, C], attention written out, DeepSpeed's own ZeRO,
eager. Fast: dispatch by index, fused attention, flat gradients; on a GPU also torch.compile and
CUDA graphs. Both start from the same weights and train on the same random tokens through the real
engine (ZeRO-2, AdaFactor), in one process. Their steps alternate, so that a busy machine is busy
for both.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import time
from dataclasses import dataclass, replace
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
        self.engine = engine_of(model, param_groups(model), deepspeed_config(case, device))
        self.micro_batch = micro_batch_of(self.engine, case)
        self.tokens = tokens.to(device)

    def step(self, number: int) -> None:
        for tokens in self.tokens:
            self.micro_batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            self.engine.step()


def engine_of(model: Any, parameters: Any, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine of ``model``, without what ZeRO prints of its partitions."""
    import deepspeed

    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(  # type: ignore[attr-defined]
            model=model, model_parameters=parameters, config=config
        )
    return engine


def run(steps: int) -> list[Ratio]:
    """All sizes, in this process."""
    import logging

    from dsmoe.benchmark.launchers.deepspeed_runner import free_port
    from dsmoe.benchmark.run import patched_deepspeed
    from dsmoe.common.places import checkout_folder

    place = checkout_folder()
    patched_deepspeed.ensure(place)
    sys.path.insert(0, str(place))
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({**alone, "MASTER_PORT": str(free_port())})
    logging.disable(logging.INFO)
    print("== loading torch and DeepSpeed", flush=True)
    import deepspeed
    import torch
    from deepspeed.moe.kernels.policy import notes
    from deepspeed.utils import groups  # type: ignore[attr-defined]
    from deepspeed.utils.neutral import backend

    deepspeed.init_distributed(dist_backend=backend(), verbose=False)  # type: ignore[attr-defined]
    groups.initialize(ep_size=1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name, case in sizes(device).items():
        size = f"{case.micro_batches} x {case.micro_batch_size} sequences"
        print(f"== {name}: {size}, {steps + 2} steps by either path", flush=True)
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
