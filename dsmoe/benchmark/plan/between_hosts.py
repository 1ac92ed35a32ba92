"""What an expert parallel group costs the network where its members are on several hosts."""

from __future__ import annotations

from pathlib import Path

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.placement import exchanged_share, group_hosts
from dsmoe.benchmark.plan.estimate import GIB, MIB, estimate
from dsmoe.benchmark.predict.amounts.traffic import handed_over
from dsmoe.common.errors import EnvironmentProblem


def exchange_warning(case: Case, devices: int, device: str, checkout: Path) -> str | None:
    """A line for a case whose experts' tokens go between hosts; None where they do not.

    ``devices`` processes are on each host, on ``device`` (cpu or cuda). The bytes are what a
    process hands to the exchange in a step, and the share of it that leaves the host: by the
    formula, which test_step_plan.py compares with a real step; for a pipeline by a plan, in
    seconds.
    """
    parallel = case.parallel
    share = exchanged_share(parallel, devices)
    if not share:
        return None
    try:
        if parallel.pipeline_parallel_size > 1:
            handed = estimate(case, device, checkout)["sent"].get("all-to-all", 0)
        else:
            handed = handed_over(case)
        size = handed * share * devices
        cost = f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.2f} MiB"
    except EnvironmentProblem as error:
        cost = f"an unknown amount ({error})"
    option = "layout inside" if parallel.expert_layout == "across" else "parallel auto"
    return (
        f"the experts of a layer are on {parallel.expert_parallel_size} processes of "
        f"{group_hosts(parallel, devices)} hosts: each host sends {cost} an iteration for their "
        f"tokens; --expert-{option} keeps that inside a host"
    )
