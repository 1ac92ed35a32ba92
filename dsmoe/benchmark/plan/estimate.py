"""``--plan``: what a case needs of each GPU and of the network, before anything starts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any, Sequence

from dsmoe.benchmark.cases.chosen import chosen_cases, with_options
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.suites import MODELS, Case, Parallel, find_case
from dsmoe.benchmark.preflight.machine import this_machine
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common.errors import EnvironmentProblem, UsageError
from dsmoe.common.places import import_root

GIB, MIB = 1 << 30, 1 << 20
DOES_NOT_FIT = 1
# An allowance for what CUDA, its libraries and NCCL take of a GPU beside the tensors. The
# allocator's rounding and free blocks come on top, so a close fit is no promise.
CUDA_CONTEXT_BYTES = int(1.2 * GIB)
ORDER = (
    "parameters",
    "fp32 weights",
    "optimizer state",
    "gradients",
    "reduce buckets",
    "activations",
)


def worker(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plans of ``specs``, each a case, its configuration and device, of one parallelism.

    In a process of its own: a process group and DeepSpeed's groups are made once a process.
    Raises EnvironmentProblem with the last line of what the process said where it fails.
    """
    paths = [str(patched_deepspeed.location()), str(import_root())]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [sys.executable, "-m", "dsmoe.benchmark.plan.simulation"],
        input=json.dumps(specs),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise EnvironmentProblem(
            f"the plan could not be made: {said[:300]}; is {paths[0]} a patched DeepSpeed?"
        )
    return json.loads(done.stdout.splitlines()[-1])


def plan_lines(case: Case, plan: dict[str, Any], memory: int | None, where: str) -> list[str]:
    """The table of a plan in ASCII; ``memory`` bytes are there for one process."""
    p = case.parallel
    total = case.model.parameter_count
    size, unit = (GIB, "GiB") if plan["peak"] >= GIB else (MIB, "MiB")
    lines = [
        f"{case.suite} {case.model.name} on {p.processes} process(es): ZeRO-{p.zero_stage}, expert "
        f"parallel {p.expert_parallel}, {case.optimizer}, {case.precision}, {case.micro_batches} x "
        f"{case.micro_batch_size} sequences{', remat' if case.remat else ''}",
        f"  parameters        {total / 1e9:.4g} billion, {plan['local_parameters'] / 1e9:.4g} "
        "billion on each process",
        f"  memory of a process, {unit:<12}{'at the peak':>14}{'at its most':>14}",
    ]
    for kind in [*ORDER, *sorted(set(plan["most"]) - set(ORDER))]:
        at_peak, most = plan["kinds"].get(kind, 0), plan["most"].get(kind, 0)
        lines.append(f"    {kind:<31}{at_peak / size:>14.3f}{most / size:>14.3f}")
    lines += [
        f"    {'together':<31}{plan['peak'] / size:>14.3f}",
        f"    {'dispatch buffers, a layer':<31}{'':>14}{2 * plan['dispatch'] / size:>14.3f}",
        "      (slots into and out of the experts, part of the activations)",
        f"  sent by a process in a step, {unit}",
    ]
    sent = {kind: bytes_ for kind, bytes_ in sorted(plan["sent"].items()) if bytes_}
    lines += [f"    {kind:<31}{bytes_ / size:>14.3f}" for kind, bytes_ in sent.items()]
    lines += [] if sent else ["    nothing"]
    return [*lines, "  " + verdict(plan["peak"], memory, where)[1]]


def verdict(peak: int, memory: int | None, where: str) -> tuple[bool, str]:
    """(fits, words) for ``peak`` bytes of tensors against ``memory``; None: not known."""
    if memory is None:
        return True, "no memory to compare with: --device-memory GIB gives it"
    need = peak + (CUDA_CONTEXT_BYTES if where != "cpu" else 0)
    share = 100 * need / memory
    context = ", CUDA's own included" if where != "cpu" else ""
    size = f"{need / GIB:.1f} GiB" if need >= GIB / 10 else f"{need / 2**20:.1f} MiB"
    words = f"needs {size}{context}; there are {memory / GIB:.1f} GiB ({share:.0f} %)"
    if need > memory:
        return False, f"does not fit: {words}; take more GPUs or smaller micro-batches"
    return True, f"{'fits' if share <= 90 else 'close'}: {words}"


def planned_cases(
    options: argparse.Namespace, device: str, memory: int | None = None
) -> list[Case]:
    """The cases of the options; with ``--model`` any size on any number of GPUs.

    ``memory``: bytes of a GPU, where known.

    Raises UsageError.
    """
    if options.model is None:
        if options.global_batch is not None:
            raise UsageError("--global-batch goes with --plan --model; leave it out")
        return chosen_cases(options, device, memory)
    if options.model not in MODELS:
        raise UsageError(f"model {options.model!r}: expected one of {', '.join(MODELS)}")
    base = find_case("artifact", 1)
    model = MODELS[options.model]
    batch = options.global_batch or max(base.global_batch, options.gpus)
    # As many experts to a process as divide them, up to the suite's expert parallel size of 8.
    expert_parallel = options.expert_parallel or max(
        size for size in (1, 2, 4, 8) if options.gpus % size == 0 and model.experts % size == 0
    )
    parallel = Parallel(options.gpus, expert_parallel)
    if batch % options.gpus:
        raise UsageError(
            f"a global batch of {batch} sequences does not divide among {options.gpus} GPUs; give "
            f"--global-batch with a multiple of {options.gpus}"
        )
    each = batch // options.gpus
    size = options.micro_batch_size or max(n for n in (1, 2, 4, 8) if each % n == 0)
    case = dataclasses.replace(
        base,
        suite="plan",
        model=model,
        parallel=parallel,
        global_batch=batch,
        micro_batches=max(1, each // size),
        source="chosen for --plan",
    )
    return [with_options(case, options)]


def print_plans(options: argparse.Namespace) -> int:
    """Print the plan of every chosen case; 0, or DOES_NOT_FIT if one is too large.

    Builds the DeepSpeed checkout if it is missing. Raises DsmoeError.
    """
    machine = this_machine()
    on_cpu = machine.device == "cpu" and options.model is None and options.suite in (None, "smoke")
    device = "cpu" if on_cpu else "cuda"
    memory = device_memory(options, machine.hardware, "cuda", 1)
    cases = planned_cases(options, machine.device, memory)
    patched_deepspeed.ensure(patched_deepspeed.location())
    code = 0
    for case in cases:
        spec = {
            "case": case.to_dict(),
            "config": deepspeed_config(case, device),
            "device": device,
        }
        [plan] = worker([spec])
        memory = device_memory(options, machine.hardware, device, case.parallel.processes)
        print()
        print("\n".join(plan_lines(case, plan, memory, device)))
        if not verdict(plan["peak"], memory, device)[0]:
            code = DOES_NOT_FIT
    return code


def device_memory(
    options: argparse.Namespace, hardware: dict[str, Any], device: str, processes: int
) -> int | None:
    """Bytes for one process: as asked for, this machine's GPU's, or a share of its memory."""
    if options.device_memory:
        return int(options.device_memory * GIB)
    if device == "cuda":
        return hardware.get("device_memory_bytes")
    import psutil

    return int(psutil.virtual_memory().total) // processes


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m dsmoe.benchmark.plan.estimate NUM_GPUS …``: the front door's ``--plan``."""
    from dsmoe.commands.run import main as front_door

    return front_door([*(sys.argv[1:] if arguments is None else arguments), "--plan"])


if __name__ == "__main__":
    sys.exit(main())
