"""When a case reduces its gradients, where neither the case nor the user says so.

Between hosts every reduction is dear, so on several hosts gradients are summed on each process and
reduced once a step, if the memory for these sums is there: fp32, 4 bytes for each element that a
process holds. On one host the stage decides (deepspeed/runtime/zero/flat_gradients.py): the links
are fast, and ZeRO-2 keeps its gradients partitioned.
"""

from __future__ import annotations

import dataclasses

from dsmoe.benchmark.cases.case import PAPER_SUITES, Case
from dsmoe.benchmark.predict.memory import peak_bytes

#: Of a device's memory, what the formula's peak may take: it knows no allocator and no CUDA.
SHARE = 0.85


def with_reduce(case: Case, devices: int, memory: int | None) -> Case:
    """``case`` with ``reduce`` and the reason for it; as it is where there is nothing to choose.

    ``devices`` processes are on each host, each with ``memory`` bytes (None: not known). The
    suites of the paper, pipelines (which always sum a step's micro-batches), ZeRO-0 and gradients
    that are not flat are as they are.
    """
    hosts = -(-case.parallel.processes // devices)
    alone = case.parallel.pipeline_parallel_size == 1
    if case.reduce or not case.flat_gradients or case.suite in PAPER_SUITES or not alone:
        return case
    if hosts == 1:
        return case
    step = dataclasses.replace(case, reduce="step", reduce_reason=f"{hosts} hosts")
    if memory is None or peak_bytes(step) <= SHARE * memory:
        return step
    why = f"{hosts} hosts, but no memory for fp32 sums of a step"
    each = dataclasses.replace(case, reduce="micro_batch", reduce_reason=why)
    # with few copies its messages, whole in 16 bit, take more than the sums would
    return each if peak_bytes(each) < peak_bytes(step) else step
