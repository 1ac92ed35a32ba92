"""What a case needs of each GPU and of the network, before anything starts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import in_words
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.places import import_root

GIB, MIB = 1 << 30, 1 << 20
# An allowance for what CUDA, its libraries and NCCL take of a GPU beside the tensors. The
# allocator's rounding and free blocks come on top, so a close fit is no promise.
CUDA_CONTEXT_BYTES = int(1.2 * GIB)
# A plan takes seconds; what takes so long hangs, or swaps.
SIMULATION_SECONDS = 600.0
ORDER = (
    "parameters",
    "fp32 weights",
    "optimizer state",
    "gradients",
    "reduce buckets",
    "activations",
)

#: What the plan calls the gradients that go to their owners in blocks of int8.
GRADIENTS_BY_BLOCK = "all-to-all, int8"
#: What is sent -> how the table says it.
SENT = {
    "all-to-all": "all-to-all, experts' tokens",
    "reduce": "reduce, gradients to owners",
    "reduce-scatter": "reduce-scatter, gradients",
    "all-reduce": "all-reduce, gradients",
    GRADIENTS_BY_BLOCK: "all-to-all, gradients in int8",
    "all-gather": "all-gather, new weights",
}


def estimate(case: Case, device: str, checkout: Path) -> dict[str, Any]:
    """The plan of one case on ``device`` (cpu or cuda), by the model of ``checkout``.

    See simulation.simulate and stages.simulate_stages for its keys, to which ``note`` is added.
    DeepSpeed's own MoE layer moves its counts to the CPU, which a model without values cannot; the
    product form, which has the same [S, E, C] tensors, stands for it. Raises EnvironmentProblem.
    """
    note = ""
    if case.moe_implementation == "deepspeed":
        note = "planned with the product form in place of DeepSpeed's own MoE layer"
        case = dataclasses.replace(case, moe_implementation="einsum")
    spec = {"case": case.to_dict(), "config": deepspeed_config(case, device), "device": device}
    return {**simulated([spec], checkout)[0], "note": note}


def simulated(specs: list[dict[str, Any]], checkout: Path) -> list[dict[str, Any]]:
    """The plans of ``specs``, each a case, its configuration and device, of one parallelism.

    In a process of its own: a process group and DeepSpeed's groups are made once a process.
    Raises EnvironmentProblem with the last line of what the process said where it fails.
    """
    paths = [str(checkout), str(import_root())]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dsmoe.benchmark.plan.program"],
            input=json.dumps(specs),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
            timeout=SIMULATION_SECONDS * len(specs),
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"the plan was not made within {error.timeout:g} s; expected seconds: see whether "
            f"torch and {paths[0]} can be imported here (dsmoe check)"
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise EnvironmentProblem(
            f"the plan could not be made: {said[:300]} (dsmoe check says what is missing here)"
        )
    plans: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return plans


def plan_lines(case: Case, plan: dict[str, Any], memory: int | None, where: str) -> list[str]:
    """The table of a plan in ASCII; ``memory`` bytes are there for one process."""
    total = case.model.parameter_count
    size, unit = (GIB, "GiB") if plan["peak"] >= GIB else (MIB, "MiB")
    lines = [
        in_words(case),
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
    lines += [
        f"    {SENT.get(kind, kind):<31}{bytes_ / size:>14.3f}" for kind, bytes_ in sent.items()
    ]
    lines += [] if sent else ["    nothing"]
    between = plan.get("exchange_between_hosts", 0)
    if between:
        lines.append(f"  sent by a host to other hosts in a step, {unit}")
        lines.append(f"    {SENT['all-to-all']:<31}{between / size:>14.3f}")
    if plan.get("stages"):
        lines.append(f"  by stage, {unit}{'memory':>30}{'sent':>14}")
        for number, stage in enumerate(plan["stages"], 1):
            first, last = stage["layers"]
            words = f"{number}: layers {first} to {last - 1}"
            total_sent = sum(stage["sent"].values())
            lines.append(f"    {words:<31}{stage['peak'] / size:>14.3f}{total_sent / size:>14.3f}")
    lines += [f"  note: {plan['note']}"] if plan.get("note") else []
    return [*lines, "  " + verdict(plan["peak"], memory, where)[1]]


def verdict(peak: int, memory: int | None, where: str) -> tuple[bool, str]:
    """(fits, words) for ``peak`` bytes of tensors against ``memory``; None: not known."""
    if memory is None:
        return True, "a GPU's memory is not known here; --device-memory GIB states it"
    need = peak + (CUDA_CONTEXT_BYTES if where != "cpu" else 0)
    share = 100 * need / memory
    context = ", CUDA's own included" if where != "cpu" else ""
    size = f"{need / GIB:.1f} GiB" if need >= GIB / 10 else f"{need / 2**20:.1f} MiB"
    words = f"needs {size}{context}; there are {memory / GIB:.1f} GiB ({share:.0f} %)"
    if need > memory:
        return False, (
            f"does not fit: {words}; take more GPUs or smaller micro-batches, or let dsmoe plan "
            "--search find settings that fit"
        )
    return True, f"{'fits' if share <= 90 else 'close'}: {words}"
