"""``dsmoe plan``: what a run needs of memory and network, before anything starts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Sequence

from dsmoe.benchmark.launchers.names import AUTO
from dsmoe.commands import launching
from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, add_json, count
from dsmoe.common.errors import UsageError, exit_code_lines
from dsmoe.common.kernel_choice import check_kernels
from dsmoe.common.output import line_printer
from dsmoe.common.places import chosen_checkout
from dsmoe.common.tables import wrapped

if TYPE_CHECKING:
    from dsmoe.benchmark.launchers.interface import Launcher

NEEDS = ("filelock", "git", "numpy", "psutil")
FITS, DOES_NOT_FIT = 0, 1
MOST_GIB = 1 << 20  # of one device; a typing error is more

EXAMPLES = """examples:
  dsmoe plan 8                                   # the artifact's case for 8 GPUs
  dsmoe plan 64 --suite paper                    # the paper's largest case
  dsmoe plan 128 --model 70B --zero-stage 1      # any named size on any number of GPUs
  dsmoe plan 1 --suite tuned --device-memory 80 --json
  dsmoe plan 32 --suite paper --method published --cluster p3.16xlarge
  dsmoe plan 64 --model 70B --cluster h100-400g --search --explain
  dsmoe plan 16 --launcher slurm                 # on the nodes of the job around it

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Says how much memory a process needs in a training step, by kind, how many "
        "bytes it sends,\nand how long an iteration takes on a cluster. The real model goes "
        "through a step without values for the\nmemory; the time is a sum of parts at the "
        "cluster's rates. Nothing is started, and no GPU is needed.",
        epilog=EXAMPLES.replace("dsmoe plan", prog) + exit_code_lines("plan"),
    )
    shared.add_case_options(parser)
    where = parser.add_argument_group("what is planned for")
    shared.add_plan_options(where)
    where.add_argument(
        "--per-host",
        type=count,
        metavar="N",
        help="A host has N GPUs (default: 8, or the most up to 8 that fill hosts).",
    )
    where.add_argument(
        "--cluster",
        metavar="NAME",
        help="The time is predicted for this cluster, by name or as a file of dsmoe calibrate "
        "(default: this machine where its rates are known, else, for GPUs, h100-400g).",
    )
    where.add_argument(
        "--search",
        action="store_true",
        help="The settings of the case (pipeline, expert parallel, reduction, ZeRO stage, "
        "micro-batch, remat) that fit the memory are ranked by predicted time, the memory by "
        "formula.",
    )
    where.add_argument(
        "--explain",
        action="store_true",
        help="With --search: a sentence says why the best setting is faster than the next.",
    )
    launching.add_launcher(
        parser,
        "The hosts are those of this launcher, and the first of them says what GPUs it has "
        "(default: the plan asks none).",
    )
    parser.set_defaults(hostfile=None)
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the plan of every chosen case; DOES_NOT_FIT if one is too large.

    Builds the DeepSpeed checkout if it is missing. Raises DsmoeError.
    """
    if options.launcher == AUTO and options.hostfile is None:
        return _plan(options, None)
    code = launching.follow(options)
    if code is not None:
        return code
    return launching.launched(options, lambda found, _: _plan(options, found), to_check=True)


def _plan(options: argparse.Namespace, launcher: Launcher | None) -> int:
    if not options.json:  # the imports below take seconds
        print("== planning; nothing is started", flush=True)
    from dsmoe.benchmark.cases.choice import case_of_model, chosen_cases, in_words
    from dsmoe.benchmark.cases.placement import HOST_DEVICES, exchanged_share
    from dsmoe.benchmark.plan.estimate import estimate, plan_lines, verdict
    from dsmoe.benchmark.predict.fastest import fastest_for
    from dsmoe.benchmark.predict.pipelines import predict_case
    from dsmoe.benchmark.predict.rates.choose_cluster import cluster_for
    from dsmoe.benchmark.predict.rates.cluster import load_cluster
    from dsmoe.benchmark.predict.rates.remarks import remarks
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.benchmark.run import patched_deepspeed

    check_kernels(os.environ)
    named = load_cluster(options.cluster) if options.cluster is not None else None

    def on_hosts(processes: int) -> int:
        if launcher is not None and not options.per_host:
            return launcher.lay_out(processes).devices
        most = options.per_host or (named.gpus_per_host if named else HOST_DEVICES)
        sizes = range(1, min(most, processes) + 1)  # a file's number may be huge
        devices = options.per_host or max(n for n in sizes if processes % n == 0)
        if processes % devices and processes > devices:
            raise UsageError(
                f"--per-host {devices}: {processes} processes do not fill hosts of {devices}; name "
                f"a number that divides {processes}"
            )
        return min(processes, devices)

    machine = launching.head(launcher, options.gpus, None) if launcher else this_machine()
    if named is not None:
        options.device_memory = options.device_memory or named.memory_bytes / 2**30
    on_cpu = machine.device == "cpu" and options.model is None
    on_cpu = on_cpu and options.suite in (None, "smoke")
    device = "cpu" if on_cpu else "cuda"
    gpu = machine.gpu if machine.device == device else ""
    cluster = cluster_for(options.cluster, device, gpu)
    memory = device_memory(options.device_memory, machine.hardware, "cuda", 1)
    if memory is None and cluster is not None and cluster.device == "cuda":
        memory = cluster.memory_bytes  # of the GPUs whose time is predicted
    fastest = fastest_for(options.cluster, device, gpu, None if on_cpu else memory)
    if options.model is not None:
        for name in ("suite", "method", "all"):
            if getattr(options, name):
                raise UsageError(f"--{name} does not go with --model; leave one of them out")
        changes = shared.changes_of(options)
        cases = [case_of_model(options.model, options.gpus, changes, on_hosts, memory, fastest)]
    else:
        wanted = shared.wanted_of(options)
        cases = chosen_cases(wanted, machine.device, memory, on_hosts, fastest)
    if options.explain and not options.search:
        raise UsageError("--explain is for --search; give both, or leave it out")
    if options.search:
        return _search(options, cases, cluster, on_hosts)
    # dsmoe run --plan has --deepspeed, dsmoe plan has not
    checkout, _ = chosen_checkout(getattr(options, "deepspeed", None))
    say = line_printer(options.json)
    patched_deepspeed.ensure(checkout, say)
    reports: list[dict[str, Any]] = []
    for case in cases:
        say("\n".join(wrapped(f"== counting the memory and traffic of {in_words(case)}")))
        plan = estimate(case, device, checkout)
        devices = on_hosts(case.parallel.processes)
        exchanged = plan["sent"].get("all-to-all", 0) * devices
        plan["exchange_between_hosts"] = round(exchanged * exchanged_share(case.parallel, devices))
        there = device_memory(
            options.device_memory, machine.hardware, device, case.parallel.processes
        )
        if there is None and cluster is not None and cluster.device == device:
            there = cluster.memory_bytes  # of the GPUs whose time is predicted
        fits, words = verdict(plan["peak"], there, device)
        found = None if cluster is None else predict_case(case, cluster.with_hosts_of(devices))
        predicted = None if found is None else found.to_dict(case)
        hosts = -(-case.parallel.processes // devices)
        said = remarks(cluster, device, case.parallel.processes, hosts) if cluster else []
        reports.append(
            {
                "case": case.to_dict(),
                **plan,
                "fits": fits,
                "verdict": words,
                "predicted": predicted,
                "remarks": said,
            }
        )
        if not options.json:
            print()
            _print_lines(plan_lines(case, plan, there, device))
            _print_lines(time_lines(case, found, said))
    if options.json:
        print(json.dumps(reports[0] if len(reports) == 1 else {"plans": reports}, indent=2))
    return FITS if all(report["fits"] for report in reports) else DOES_NOT_FIT


def _search(options: argparse.Namespace, cases: list[Any], cluster: Any, on_hosts: Any) -> int:
    """Print the settings of each case, ranked. Raises UsageError where that cannot be."""
    from dsmoe.benchmark.cases.choice import in_words
    from dsmoe.benchmark.predict.search import (
        STAGES,
        NothingFits,
        explanation,
        next_best,
        search,
        search_lines,
    )

    if cluster is None or cluster.device == "cpu":
        known = "no rates" if cluster is None else f"the rates of {cluster.name}, a CPU"
        raise UsageError(
            f"--search is for GPUs: found {known}; name a suite or model of GPUs, and "
            "--cluster with one that plan --help lists"
        )
    reports: list[dict[str, Any]] = []
    fits = True
    for case in cases:
        if case.method == "published":
            raise UsageError(
                "--search has nothing to choose with the published method, whose settings are the "
                "paper's; leave it out, or name another suite"
            )
        memory = device_memory(options.device_memory, {}, "cuda", 1) or cluster.memory_bytes
        here = cluster.with_hosts_of(on_hosts(case.parallel.processes))
        try:
            found, tried = search(case, here, memory, STAGES, shared.changes_of(options))
        except NothingFits as nothing:
            print(f"does not fit: {nothing}", file=sys.stderr)
            reports.append({"case": case.to_dict(), "search": [], "why": str(nothing)})
            fits = False
            continue
        why = (
            explanation(found[0], next_best(found)) if options.explain and len(found) > 1 else None
        )
        ranked = [
            {
                "options": one.words,
                "stages": one.stages,
                "case": one.case.to_dict(),
                "peak": one.peak,
                "predicted": one.found.to_dict(case),
            }
            for one in found
        ]
        reports.append({"case": case.to_dict(), "tried": tried, "search": ranked, "why": why})
        if not options.json:
            print()
            _print_lines([f"{in_words(case)}, on {here.name}"])
            print("\n".join(search_lines(found, tried, memory)))
            if why:
                _print_lines([f"the first is the fastest: {why}"])
    if options.json:
        print(json.dumps(reports[0] if len(reports) == 1 else {"plans": reports}, indent=2))
    return FITS if fits else DOES_NOT_FIT


def _print_lines(lines: Sequence[str]) -> None:
    print("\n".join(piece for line in lines for piece in wrapped(line)), flush=True)


def time_lines(case: Any, found: Any, said: Sequence[str]) -> list[str]:
    """The prediction's lines with the remarks ``said``, or what to do for one."""
    from dsmoe.benchmark.predict.as_text import prediction_lines

    if found is None:
        return [
            "  no time is predicted: this machine's rates are not known; run dsmoe calibrate, or "
            "name a cluster"
        ]
    return [*prediction_lines(case, found), *(f"    note: {one}" for one in said)]


def device_memory(
    stated: float | None, hardware: dict[str, Any], device: str, processes: int
) -> int | None:
    """Bytes for one process: ``stated`` in GiB, the GPU's, or a share of this machine's.

    Raises UsageError for more than any device has.
    """
    if stated:
        if stated > MOST_GIB:
            raise UsageError(
                f"--device-memory {stated:g}: expected GiB of one GPU, at most {MOST_GIB:,}"
            )
        return int(stated * 2**30)
    if device == "cuda":
        known: int | None = hardware.get("device_memory_bytes")
        return known
    import psutil

    return int(psutil.virtual_memory().total) // processes
